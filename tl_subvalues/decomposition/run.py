"""One prompt's run at one position: the places where its sublayers add to the residual stream, and what they add."""

import copy
import warnings
from collections.abc import Sequence
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
    mixing_error,
    sum_tolerance,
    unknown_sources,
)


@dataclass(frozen=True)
class Site:
    """One sublayer at one position: what it reads (x) and what it adds."""

    layer: int
    sublayer: str
    residual: Float[Tensor, " d_model"]
    output: Float[Tensor, " d_model"]


@dataclass(frozen=True, eq=False)
class Total:
    """What the inner products of all parts with one covector add up to, and their length, in float64."""

    sum: Float[Tensor, ""]
    norm: Float[Tensor, ""]

    @classmethod
    def of(cls, products: Float[Tensor, " all"]) -> "Total":
        """Of the parts' inner products."""
        return cls(products.sum(dtype=torch.float64), products.norm().double())


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
        sizes = torch.stack([one.norm for one in totals]) + (outputs * along).abs().sum(-1)
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
        if not numbers:  # no rows have all columns, too
            numbers, counts = list(range(len(self.parts))), [0] * len(self.parts)
        each = zip(numbers, index[order].split(counts), strict=True)
        made = [self.parts[number].fields(own) for number, own in each]
        found = {"layer": torch.tensor([site.layer for site in self.sites], dtype=torch.long)[group]}
        for name in dict.fromkeys(name for fields in made for name in fields):
            known = next(fields[name] for fields in made if name in fields)
            pairs = zip(made, counts, strict=True)
            values = torch.cat([fields.get(name, known.new_full((n,), -1)) for fields, n in pairs])
            found[name] = torch.empty_like(values).index_copy_(0, order, values)
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
        return [
            Site(
                layer.layer,
                sublayer,
                self.activations.residual(layer.layer, sublayer, self.position)[0],
                self.activations.output(layer.layer, sublayer, self.position)[0],
            )
            for layer in self.view.layers
            for sublayer in layer.sublayers
        ]

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
        return self.biases(site.layer, site.sublayer, slice(self.position, self.position + 1))[0]

    def biases(self, layer: int, sublayer: str, positions: slice) -> Float[Tensor, "pos d_model"]:
        """The constant parts of what a sublayer adds at several positions."""
        block = self.view.layer(layer)
        constant = torch.zeros_like(self.activations.output(layer, sublayer, positions)[0])
        if sublayer == "attn":
            passage, bias = block.attention().passage, block.attention().b_O
        elif (mixture := block.mixture()) is not None:
            routed = self.activations.experts(layer, positions)
            passage, bias = mixture.passage, None if routed.bias is None else routed.bias[0]
        else:
            passage, bias = block.ffn().passage, block.ffn().b_out
        constant = constant if bias is None else constant + bias.to(constant)
        scale = self.activations.post_scale(layer, sublayer, positions)
        return passage.carry_bias(constant, None if scale is None else scale[0])

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
        neurons = NeuronSubvalues(z_p.flatten(), attention.W_O.flatten(0, 1), attention.passage, scale)
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
        found: dict[int, Tensor | UnsupportedModelError] = {}
        missing: dict[int, Tensor] = {}
        for layer in layers:
            try:
                sources = self.n_sources(layer)
                pattern = self.activations.pattern(layer, self.position)[0, :, :sources]
                z_p = found[layer] = weighted_values(pattern, self.activations.values(layer)[0, :sources])
                error = mixing_error(self.activations, layer, self.position, z_p.sum(0))
            except UnsupportedModelError as refused:
                found[layer] = refused
            else:
                if error is not None:
                    missing[layer] = error.to(self.view.device)
        for layer, pair in zip(missing, torch.stack(list(missing.values())).tolist() if missing else (), strict=True):
            found[layer] = unknown_sources(self.view, layer, *pair) or found[layer]
        return found

    def n_sources(self, layer: int) -> int:
        """Source positions up to the query; more only if the layer's pattern looks ahead."""
        pattern = self.activations.pattern(layer, self.position)[0]
        if pattern.shape[-1] <= self.position + 1:
            return self.position + 1
        seen = torch.nonzero(pattern.amax(0)).flatten()
        return max(self.position, int(seen[-1]) if len(seen) else 0) + 1

    def _ffn_neurons(self, layer: int) -> Parts:
        mixture = self.view.layer(layer).mixture()
        if mixture is not None:
            return self._expert_neurons(layer, mixture)
        ffn = self.view.layer(layer).ffn()
        m = self.activations.coefficients(layer, ffn.W_out.shape[0], self.position)[0]
        neurons = NeuronSubvalues(m, ffn.W_out, ffn.passage, self._post_scale(layer, "mlp"))
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
