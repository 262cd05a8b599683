"""One prompt's run at one position: the places where its sublayers add to the residual stream, and what they add."""

import copy
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.parts import ExpertParts, Parts
from tl_subvalues.decomposition.subvalues import (
    HeadPositionSubvalues,
    JoinedSubvalues,
    NeuronSubvalues,
    WholeSubvalues,
    weighted_values,
)
from tl_subvalues.errors import SubvaluesWarning, UnknownSourcesError, UnsupportedModelError
from tl_subvalues.labels import PART_OF, Unit
from tl_subvalues.model_view import (
    Activations,
    MixtureOfExperts,
    ModelView,
    Routed,
    mixing_errors,
    sum_tolerance,
    unknown_sources,
)
from tl_subvalues.numerics.blocks import joined


@dataclass(frozen=True)
class Site:
    """One sublayer at one position: what it reads (x) and what it adds."""

    layer: int
    sublayer: str
    residual: Float[Tensor, " d_model"]
    output: Float[Tensor, " d_model"]


@dataclass(frozen=True, eq=False)
class Total:
    """What the inner products of all parts with one covector add up to, in float64, and their length."""

    sum: Float[Tensor, ""]
    norm: Float[Tensor, ""]

    @classmethod
    def of(cls, products: Float[Tensor, " all"]) -> "Total":
        """Of the parts' inner products."""
        return cls(products.sum(dtype=torch.float64), products.norm())


@dataclass(frozen=True)
class UnitParts:
    """All parts of one unit in a run, sublayer by sublayer."""

    unit: Unit
    numbers: tuple[int, ...]  # of the sublayers, among the run's sites
    sites: tuple[Site, ...]
    parts: tuple[Parts, ...]
    constants: tuple[Float[Tensor, " d_model"], ...]  # what each sublayer adds beside its parts
    tolerance: float
    left_out: tuple[int, ...] = ()  # layers that have such parts, which cannot be told apart in this run

    def check_sums(self, covectors: Sequence[Float[Tensor, " d_model"]], totals: Sequence["Total"]) -> None:
        """Check that each sublayer's parts still add up to what it added in the run, along a covector.

        Args:
            covectors: one a sublayer; any, the more of the parts it sees the better.
            totals: of the inner products of every part with it, which most callers have anyway.

        Raises:
            ValueError: if they do not: weights or activations have changed since the run, unseen by `fingerprint`.
        """
        if not self.sites:
            return
        outputs = torch.stack([site.output for site in self.sites]).double()
        along, constants = torch.stack(list(covectors)).double(), torch.stack(self.constants).double()
        errors = (torch.stack([one.sum for one in totals]) - ((outputs - constants) * along).sum(-1)).abs()
        # What rounding may do: to each part, and to each entry of the output, which is in the model's dtype.
        sizes = torch.stack([one.norm for one in totals]).double() + (outputs * along).abs().sum(-1)
        fine = errors <= self.tolerance * sizes
        if not bool(fine.all()):
            first = int(torch.nonzero(~fine)[0])
            site = self.sites[first]
            raise ValueError(
                f"the {self.unit.replace('_', ' ')}s of layer {site.layer} no longer add up to what its "
                f"{site.sublayer} sublayer added in the run (off by {float(errors[first]):.2g} where they amount to "
                f"{float(sizes[first]):.2g}): its weights, or the trace's cache, were written to since; trace the "
                "prompt again."
            )

    def fields(self, group: Int[Tensor, " n"], index: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """What tells the chosen parts apart: layer, head, position, dim, neuron, as far as the unit has them.

        Row i is part index[i] of sublayer group[i]. Neurons have a `coefficient`; where some layers are mixtures of
        experts there is an `expert`, −1 in the dense ones.
        """
        order = torch.argsort(group, stable=True)
        numbers, counts = (each.tolist() for each in group[order].unique_consecutive(return_counts=True))
        found = {"layer": torch.tensor([site.layer for site in self.sites], dtype=torch.long)[group]}
        for name in dict.fromkeys(name for parts in self.parts for name in parts.names):
            found[name] = torch.full_like(group, -1)
        present = list(zip(numbers, order.split(counts) if counts else (), strict=True))
        alike: dict[tuple[tuple[str, int], ...], list[tuple[int, Tensor]]] = {}  # sublayers that count theirs the same
        for number, rows in present:
            parts = self.parts[number]
            kind = (("sublayer", number),) if isinstance(parts, ExpertParts) else tuple(parts.axes.items())
            alike.setdefault(kind, []).append((number, rows))
        for same in alike.values():
            rows = joined([own for _, own in same])
            for name, values in self.parts[same[0][0]].fields(index[rows]).items():
                found[name][rows] = values
        coefficients = self._coefficients(index, present)
        return found if coefficients is None else {**found, "coefficient": coefficients}

    def _coefficients(
        self, index: Int[Tensor, " n"], present: Sequence[tuple[int, Int[Tensor, " _"]]]
    ) -> Float[Tensor, " n"] | None:
        """Coefficients of the chosen parts, `present` their rows by sublayer; a device is waited for once."""
        known = [parts.coefficients for parts in self.parts if parts.coefficients is not None]
        if not known:
            return None
        if not present:
            return torch.empty(0, dtype=known[0].dtype)
        chosen: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
        inside = index[joined([rows for _, rows in present])].split([len(rows) for _, rows in present])
        for (number, rows), own in zip(present, inside, strict=True):
            m = self.parts[number].coefficients
            assert m is not None
            chosen.setdefault(m.device, []).append((rows, m[own.to(m.device)]))
        found = torch.empty(len(index), dtype=known[0].dtype)
        for pairs in chosen.values():
            found[torch.cat([rows for rows, _ in pairs])] = torch.cat([values for _, values in pairs]).cpu()
        return found

    def sublayers(self, group: Int[Tensor, " n"]) -> list[str]:
        """The sublayer of each chosen part: "attn", "mlp", or a mixer's name."""
        return [self.sites[number].sublayer for number in group.tolist()]


class Run:
    """One prompt's activations at one position, taken apart on request."""

    def __init__(self, view: ModelView, activations: Activations, position: int) -> None:
        self.view = view
        self.activations = activations
        self.position = position
        self._weights = view.fingerprint()
        self._activations = activations.fingerprint()
        self._experts: dict[int, Routed] = {}

    def require_unchanged(self) -> None:
        """Raise if the model's weights or the run's activations were written to since, for its parts are made of both.

        Raises:
            ValueError: if they were.
        """
        if self.view.fingerprint() != self._weights:
            raise ValueError(
                f"the weights of {self.view.name} have changed since this trace was made, so its activations and its "
                "weights no longer go together; trace the prompt again."
            )
        if self.activations.fingerprint() != self._activations:
            raise ValueError(
                "the cache of this trace was written to since the trace was made; trace the prompt again, or pass the "
                "edited run as cache=."
            )

    def at(self, position: int) -> "Run":
        """The same run at another position."""
        if position == self.position:
            return self
        other = copy.copy(self)
        other.__dict__.pop("sites", None)
        other._experts = {}
        other.position = position
        return other

    @property
    def n_positions(self) -> int:
        """Number of the prompt's positions."""
        return self.activations.batch_and_positions[1]

    @cached_property
    def sites(self) -> list[Site]:
        """All sublayers, in order of computation."""
        places = [(layer.layer, sublayer) for layer in self.view.layers for sublayer in layer.sublayers]
        if not places:
            return []
        read, added = (
            torch.cat([of(layer, sublayer, self.position) for layer, sublayer in places]).unbind()
            for of in (self.activations.residual, self.activations.output)
        )
        return [Site(*place, x, output) for place, x, output in zip(places, read, added, strict=True)]

    def site(self, layer: int, sublayer: str) -> Site:
        """One sublayer.

        Raises:
            ValueError: if the model has none of that name there.
        """
        for site in self.sites:
            if (site.layer, site.sublayer) == (layer, sublayer):
                return site
        raise ValueError(
            f"{self.view.name} has no {sublayer} sublayer in layer {layer}; its layers run from 0 to "
            f"{self.view.n_layers - 1}."
        )

    def read_by(self, layer: int, sublayer: str) -> list[Site]:
        """The sublayers whose outputs are in the residual stream that a sublayer reads, in order of computation.

        Of its own layer that is the attention (or mixer), for an FFN that does not stand beside it.
        """
        own = self.view.layer(layer).reads_mid(sublayer)
        return [s for s in self.sites if s.layer < layer or (s.layer == layer and s.sublayer != "mlp" and own)]

    def read(self, layer: int, sublayer: str) -> Float[Tensor, " d_model"]:
        """The residual stream that a sublayer reads, at the run's position."""
        return self.activations.residual(layer, sublayer, self.position)[0]

    def embeddings(self) -> dict[str, Float[Tensor, " d_model"]]:
        """What enters layer 0, by label: `embed`, and `pos_embed` where it is added by itself."""
        return {label: vector[0] for label, vector in self.activations.embeddings(self.position).items()}

    def bias(self, site: Site) -> Float[Tensor, " d_model"]:
        """The constant part of what a sublayer adds: what its heads or neurons leave of its output."""
        if self._adds_nothing(site.layer, site.sublayer):
            return self._nothing
        return self.biases(site.layer, site.sublayer, slice(self.position, self.position + 1))[0]

    def biases(self, layer: int, sublayer: str, positions: slice) -> Float[Tensor, "pos d_model"]:
        """The constant parts of what a sublayer adds at several positions."""
        block = self.view.layer(layer)
        if sublayer == "attn":
            passage, bias = block.attention().passage, block.attention().b_O
        elif (mixture := block.mixture()) is not None:
            routed = self.activations.experts(layer, positions)
            passage, bias = mixture.passage, None if routed.bias is None else routed.bias[0]
        else:
            passage, bias = block.ffn().passage, block.ffn().b_out
        constant = self._nothing.expand(len(range(self.n_positions)[positions]), -1)
        constant = constant if bias is None else constant + bias.to(constant)
        scale = self.activations.post_scale(layer, sublayer, positions)
        return passage.carry_bias(constant, None if scale is None else scale[0])

    @cached_property
    def _nothing(self) -> Float[Tensor, " d_model"]:
        """A constant part that is none."""
        return torch.zeros_like(self.activations.final_residual(self.position)[0])

    def _adds_nothing(self, layer: int, sublayer: str) -> bool:
        """Whether a dense sublayer adds no constant part."""
        block = self.view.layer(layer)
        if sublayer == "attn":
            return block.attention().b_O is None and block.attention().passage.adds_nothing
        return block.mixture() is None and block.ffn().b_out is None and block.ffn().passage.adds_nothing

    def parts(self, site: Site, unit: Unit) -> Parts:
        """The parts of one site.

        Raises:
            UnsupportedModelError: if the sublayer has no such parts, or none that can be told apart.
        """
        if unit == "sublayer":
            return Parts(WholeSubvalues(site.output[None]), {})
        if unit == "ffn_neuron":
            return self._ffn_neurons(site.layer)
        if unit == "head":
            return self._heads(site.layer)
        return self._by_source(site.layer, unit, self.weighted_values(site.layer))

    def _heads(self, layer: int) -> Parts:
        attention, scale = self.view.layer(layer).attention(), self._post_scale(layer, "attn")
        z = self.activations.z(layer, self.position)[0].reshape(attention.W_O.shape[:2])
        heads = torch.einsum("he,hem->hm", z, attention.W_O.to(z))
        return Parts(WholeSubvalues(attention.passage.carry(heads, scale)), {"head": len(heads)})

    def _by_source(self, layer: int, unit: Unit, z_p: Float[Tensor, "source head d_head"]) -> Parts:
        """Parts of an attention sublayer that are told apart by source position."""
        attention, scale = self.view.layer(layer).attention(), self._post_scale(layer, "attn")
        n_heads, d_head, _ = attention.W_O.shape
        if unit == "head_position":
            subvalues = HeadPositionSubvalues(z_p.transpose(0, 1), attention.W_O, attention.passage, scale)
            return Parts(subvalues, {"head": n_heads, "position": len(z_p)})
        rows = attention.rows
        neurons = NeuronSubvalues(z_p.flatten(), rows.rows, attention.passage, scale, rows)
        return Parts(neurons, {"position": len(z_p), "head": n_heads, "dim": d_head})

    def parts_of(self, unit: Unit) -> UnitParts:
        """All parts of one unit, sublayer by sublayer.

        A layer whose heads a hook keeps from being told apart by source position is left out, with a warning that
        names it, where other layers are left.

        Raises:
            UnsupportedModelError: if a sublayer has no such parts, naming all the layers that have none.
        """
        numbers = [i for i, site in enumerate(self.sites) if PART_OF[unit] in (None, site.sublayer)]
        by_source = unit in ("head_position", "attn_neuron")
        z_ps = self._weighted_values([self.sites[number].layer for number in numbers]) if by_source else {}
        found: dict[int, Parts] = {}
        refused: dict[int, UnsupportedModelError] = {}
        for number in numbers:
            site = self.sites[number]
            try:
                z_p = z_ps.get(site.layer)
                if isinstance(z_p, UnsupportedModelError):
                    raise z_p
                found[number] = self.parts(site, unit) if z_p is None else self._by_source(site.layer, unit, z_p)
            except UnsupportedModelError as error:
                refused[self.sites[number].layer] = error
        if refused:
            first = next(iter(refused.values()))
            more = f" The same holds for layers {', '.join(map(str, list(refused)[1:]))}." if len(refused) > 1 else ""
            if not found or not all(isinstance(error, UnknownSourcesError) for error in refused.values()):
                raise UnsupportedModelError(f"{first}{more}") from first
            warnings.warn(f"{first}{more} The other layers are listed.", SubvaluesWarning, stacklevel=2)
        sites = tuple(self.sites[number] for number in found)
        constants = tuple(torch.zeros_like(s.output) if unit == "sublayer" else self.bias(s) for s in sites)
        tolerance, parts = sum_tolerance(self.view), tuple(found.values())
        return UnitParts(unit, tuple(found), sites, parts, constants, tolerance, tuple(refused))

    def check_sum(self, layer: int, sublayer: str, unit: Unit) -> None:
        """Check that one sublayer's parts still add up to what it added in the run.

        Raises:
            ValueError: if they do not: weights or activations have changed since.
        """
        if unit == "sublayer":
            return
        site = self.site(layer, sublayer)
        parts = self.parts(site, unit)
        one = UnitParts(unit, (0,), (site,), (parts,), (self.bias(site),), sum_tolerance(self.view))
        one.check_sums([site.output], [Total.of(parts.subvalues.inner_products(site.output))])

    def weighted_values(self, layer: int) -> Float[Tensor, "source head d_head"]:
        """z_p of every source position that the query can see.

        Raises:
            UnsupportedModelError: if these do not add up to z.
        """
        found = self._weighted_values([layer])[layer]
        if isinstance(found, UnsupportedModelError):
            raise found
        return found

    def _weighted_values(self, layers: Sequence[int]) -> dict[int, Tensor | UnsupportedModelError]:
        """z_p of several layers, or why there is none; all are checked together, so that the host waits once."""
        patterns: dict[int, Tensor] = {}
        found: dict[int, Tensor | UnsupportedModelError] = {}
        mixed: dict[int, Tensor] = {}
        for layer in layers:
            try:
                patterns[layer] = self.activations.pattern(layer, self.position)[0]
            except UnsupportedModelError as refused:
                found[layer] = refused
        for (layer, pattern), sources in zip(patterns.items(), self._seen(patterns.values()), strict=True):
            try:
                values = self.activations.values(layer)[0]
                if sources < pattern.shape[1]:
                    pattern, values = pattern[:, :sources], values[:sources]
                z_p = found[layer] = weighted_values(pattern, values)
                mixed[layer] = z_p.sum(0)
            except UnsupportedModelError as refused:
                found[layer] = refused
        for layer, pair in mixing_errors(self.activations, mixed, self.position).items():
            found[layer] = unknown_sources(self.view, layer, *pair) or found[layer]
        return found

    def n_sources(self, *layers: int) -> int:
        """Source positions up to the query; more only if one of these layers' patterns looks ahead."""
        patterns = [self.activations.pattern(layer, self.position)[0] for layer in layers]
        return max(self._seen(patterns), default=self.position + 1)

    def _seen(self, patterns: Iterable[Float[Tensor, "head key"]]) -> list[int]:
        """Of each pattern at the query, the source positions up to it or to the last that is seen; one wait for all."""
        n = self.position + 1
        seen = [
            ((pattern[:, n:].amax(0) != 0) * torch.arange(n + 1, pattern.shape[1] + 1, device=pattern.device)).amax()
            if pattern.shape[1] > n
            else None
            for pattern in patterns
        ]
        ahead = [last.to(self.view.device) for last in seen if last is not None]
        known = iter(torch.stack(ahead).tolist() if ahead else ())
        return [n if last is None else max(n, next(known)) for last in seen]

    def _ffn_neurons(self, layer: int) -> Parts:
        mixture = self.view.layer(layer).mixture()
        if mixture is not None:
            return self._expert_neurons(layer, mixture)
        ffn = self.view.layer(layer).ffn()
        m = self.activations.coefficients(layer, ffn.W_out.shape[0], self.position)[0]
        neurons = NeuronSubvalues(m, ffn.W_out, ffn.passage, self._post_scale(layer, "mlp"), ffn.rows)
        return Parts(neurons, {"neuron": len(m)})

    def _expert_neurons(self, layer: int, mixture: MixtureOfExperts) -> ExpertParts:
        scale = self._post_scale(layer, "mlp")
        coefficients = self._routed(layer).coefficients
        groups = (
            NeuronSubvalues(m[0], mixture.expert(number).W_out, mixture.passage, scale)
            for number, m in coefficients.items()
        )
        return ExpertParts(JoinedSubvalues(tuple(groups)), {}, tuple(coefficients), mixture)

    def _routed(self, layer: int) -> Routed:
        """What a layer's experts do; routing a prompt anew for every label would be slow."""
        if layer not in self._experts:
            self._experts[layer] = self.activations.experts(layer, self.position)
        return self._experts[layer]

    def _post_scale(self, layer: int, sublayer: str) -> Float[Tensor, " 1"] | None:
        scale = self.activations.post_scale(layer, sublayer, self.position)
        return None if scale is None else scale[0]
