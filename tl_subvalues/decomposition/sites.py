"""The places of one run where a sublayer adds to the residual stream, and the parts that it adds there."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.subvalues import (
    HeadPositionSubvalues,
    NeuronSubvalues,
    Subvalues,
    WholeSubvalues,
    weighted_values,
)
from tl_subvalues.labels import Component, Unit
from tl_subvalues.model_view import Activations, MixtureOfExperts, ModelView, check_sources


@dataclass(frozen=True)
class Site:
    """One sublayer at one position: what it reads (x) and what it adds."""

    layer: int
    sublayer: str
    residual: Float[Tensor, " d_model"]
    output: Float[Tensor, " d_model"]


@dataclass(frozen=True)
class JoinedSubvalues:
    """Several neurons' subvalues one after the other, as one sublayer's: the experts of a mixture."""

    groups: tuple[NeuronSubvalues, ...]

    @cached_property
    def starts(self) -> Int[Tensor, " groups_and_end"]:
        """Number of the first part of each group, and of all parts."""
        device = self.groups[0].coefficients.device
        return torch.tensor([0, *(len(group) for group in self.groups)], device=device).cumsum(0)

    @property
    def coefficients(self) -> Float[Tensor, " component"]:
        """Coefficients of all parts."""
        return torch.cat([group.coefficients for group in self.groups])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, index: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Group of each part, and its index there."""
        starts = self.starts.to(index.device)
        group = torch.searchsorted(starts, index, right=True) - 1
        return group, index - starts[group]

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts."""
        group, inside = self.locate(index)
        result = self.groups[0].coefficients.new_empty(len(index), self.groups[0].directions.shape[1])
        for number in group.unique().tolist():
            result[group == number] = self.groups[number].vectors(inside[group == number])
        return result

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part."""
        return torch.cat([group.inner_products(covector) for group in self.groups])

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part."""
        return torch.cat([group.norms(linear) for group in self.groups])

    def longest(self) -> Float[Tensor, " all"]:
        """At least ‖v‖ for every part."""
        return torch.cat([group.longest() for group in self.groups])


@dataclass(frozen=True)
class Parts:
    """One site's subvalues, and the axes that they are counted along, outermost first."""

    subvalues: Subvalues
    axes: dict[str, int]

    def index(self, component: Component) -> int:
        """Which of the parts a component is.

        Raises:
            ValueError: if it is none of them.
        """
        index = 0
        for name, size in self.axes.items():
            value = getattr(component, name)
            if value is None or not 0 <= value < size:
                raise ValueError(f"{name} {value} is not below {size}")
            index = index * size + value
        if component.expert is not None:
            raise ValueError("the layer's FFN is dense, its neurons are called as L24N1005")
        return index

    def written(self, component: Component, device: torch.device | None = None) -> Float[Tensor, " d_model"]:
        """What a component writes: a neuron its row, sign as stored, everything else its output.

        Raises:
            ValueError: if it is none of the parts.
        """
        if component.unit == "attn_neuron" and component.position is None:  # the same row at every source position
            component = replace(component, position=0)
        index = self.index(component)
        if isinstance(self.subvalues, NeuronSubvalues):
            return _row(self.subvalues, index % len(self.subvalues.directions))
        return self.subvalues.vectors(torch.tensor([index], device=device))[0]

    def fields(self, index: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """Head, position, dim or neuron of the chosen parts; their coefficient where they are neurons."""
        found: dict[str, Tensor] = {}
        rest = index
        for name, size in reversed(self.axes.items()):
            found[name], rest = rest % size, rest // size
        if isinstance(self.subvalues, NeuronSubvalues):
            found["coefficient"] = self.subvalues.coefficients[index.to(self.subvalues.coefficients.device)].cpu()
        return found


@dataclass(frozen=True)
class ExpertParts(Parts):
    """The neurons of a mixture's experts that the token is sent to; `experts` are their numbers, in order."""

    experts: tuple[int, ...]
    mixture: MixtureOfExperts

    @property
    def joined(self) -> JoinedSubvalues:
        """The subvalues, expert by expert."""
        assert isinstance(self.subvalues, JoinedSubvalues)
        return self.subvalues

    def fields(self, index: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """Expert, neuron and coefficient of the chosen parts."""
        group, neuron = self.joined.locate(index)
        coefficients = self.joined.coefficients
        return {
            "expert": torch.tensor(self.experts, dtype=torch.long)[group.cpu()],
            "neuron": neuron,
            "coefficient": coefficients[index.to(coefficients.device)].cpu(),
        }

    def index(self, component: Component) -> int:
        """Which of the parts a component is.

        Raises:
            ValueError: if it is none of them, or belongs to an expert that the token is not sent to.
        """
        self._require(component)
        if component.expert not in self.experts:
            active = ", ".join(map(str, self.experts))
            raise ValueError(f"expert {component.expert} is not active here, only {active} are")
        assert component.neuron is not None
        return int(self.joined.starts[self.experts.index(component.expert)]) + component.neuron

    def written(self, component: Component, device: torch.device | None = None) -> Float[Tensor, " d_model"]:
        """The row of a neuron, of whatever expert.

        Raises:
            ValueError: if there is no such expert or neuron.
        """
        self._require(component)
        assert component.expert is not None
        assert component.neuron is not None
        directions = self.mixture.expert(component.expert).W_out
        first = self.joined.groups[0]
        return _row(NeuronSubvalues(first.coefficients, directions, first.passage, first.scale), component.neuron)

    def _require(self, component: Component) -> None:
        if component.expert is None:
            raise ValueError("the layer has a mixture of experts, whose neurons are called as L3E5N10")
        if not 0 <= component.expert < len(self.mixture):
            raise ValueError(f"expert {component.expert} is not below {len(self.mixture)}")
        n_neurons = len(self.mixture.expert(component.expert).W_out)
        if component.neuron is None or not 0 <= component.neuron < n_neurons:
            raise ValueError(f"neuron {component.neuron} is not below {n_neurons}")


def _row(neurons: NeuronSubvalues, index: int) -> Float[Tensor, " d_model"]:
    return neurons.passage.carry(neurons.directions[index].to(neurons.coefficients), neurons.scale)


class Run:
    """One prompt's activations at one position, taken apart on request."""

    def __init__(self, view: ModelView, activations: Activations, position: int) -> None:
        self.view = view
        self.activations = activations
        self.position = position
        self._weights = view.fingerprint()
        self._experts: dict[int, ExpertParts] = {}  # routing a prompt anew for every label would be slow

    def require_same_weights(self) -> None:
        """Raise if the model's weights have changed since the run, for its parts are made of both.

        Raises:
            ValueError: if they have.
        """
        if self.view.fingerprint() != self._weights:
            raise ValueError(
                f"the weights of {self.view.name} have changed since this trace was made, so its activations and its "
                "weights no longer go together; trace the prompt again."
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
        sequential = sublayer == "mlp" and not self.view.layer(layer).parallel
        return [s for s in self.sites if s.layer < layer or (s.layer == layer and s.sublayer != "mlp" and sequential)]

    def embeddings(self) -> dict[str, Float[Tensor, " d_model"]]:
        """What enters layer 0, by label: `embed`, and `pos_embed` where it is added by itself."""
        return {label: vector[0] for label, vector in self.activations.embeddings(self.position).items()}

    def bias(self, site: Site) -> Float[Tensor, " d_model"]:
        """The constant part of what a sublayer adds: what its heads or neurons leave of its output."""
        layer = self.view.layer(site.layer)
        if site.sublayer == "attn":
            passage, bias = layer.attention().passage, layer.attention().b_O
        elif (mixture := layer.mixture()) is not None:
            routed = self.activations.experts(site.layer, self.position)
            passage, bias = mixture.passage, None if routed.bias is None else routed.bias[0]
        else:
            passage, bias = layer.ffn().passage, layer.ffn().b_out
        constant = torch.zeros_like(site.output) if bias is None else bias.to(site.output)
        return passage.carry_bias(constant, self._post_scale(site.layer, site.sublayer))

    def parts(self, site: Site, unit: Unit) -> Parts:
        """The parts of one site.

        Raises:
            UnsupportedModelError: if the sublayer has no such parts, or none that can be told apart.
        """
        if unit == "sublayer":
            return Parts(WholeSubvalues(site.output[None]), {})
        if unit == "ffn_neuron":
            return self._ffn_neurons(site.layer)
        attention = self.view.layer(site.layer).attention()
        scale = self._post_scale(site.layer, "attn")
        n_heads, d_head, _ = attention.W_O.shape
        if unit == "head":
            z = self.activations.z(site.layer, self.position)[0].reshape(n_heads, d_head)
            heads = torch.einsum("he,hem->hm", z, attention.W_O.to(z))
            return Parts(WholeSubvalues(attention.passage.carry(heads, scale)), {"head": n_heads})
        z_p = self.weighted_values(site.layer)
        if unit == "head_position":
            subvalues = HeadPositionSubvalues(z_p.transpose(0, 1), attention.W_O, attention.passage, scale)
            return Parts(subvalues, {"head": n_heads, "position": len(z_p)})
        neurons = NeuronSubvalues(z_p.flatten(), attention.W_O.flatten(0, 1), attention.passage, scale)
        return Parts(neurons, {"position": len(z_p), "head": n_heads, "dim": d_head})

    def weighted_values(self, layer: int) -> Float[Tensor, "source head d_head"]:
        """z_p of every source position that the query can see.

        Raises:
            UnsupportedModelError: if these do not add up to z.
        """
        check_sources(self.view, self.activations, layer, self.position)
        pattern = self.activations.pattern(layer, self.position)[0]
        values = self.activations.values(layer, len(pattern))[0]
        sources = self.n_sources(pattern)
        return weighted_values(pattern[:, :sources], values[:sources])

    def n_sources(self, pattern: Float[Tensor, "head key"]) -> int:
        """Source positions up to the query; more only if the pattern looks ahead."""
        seen = torch.nonzero(pattern.amax(0)).flatten()
        return max(self.position, int(seen[-1]) if len(seen) else 0) + 1

    def _ffn_neurons(self, layer: int) -> Parts:
        mixture = self.view.layer(layer).mixture()
        if mixture is not None:
            if layer not in self._experts:
                self._experts[layer] = self._expert_neurons(layer, mixture)
            return self._experts[layer]
        ffn = self.view.layer(layer).ffn()
        m = self.activations.coefficients(layer, ffn.W_out.shape[0], self.position)[0]
        neurons = NeuronSubvalues(m, ffn.W_out, ffn.passage, self._post_scale(layer, "mlp"))
        return Parts(neurons, {"neuron": len(m)})

    def _expert_neurons(self, layer: int, mixture: MixtureOfExperts) -> "ExpertParts":
        scale = self._post_scale(layer, "mlp")
        coefficients = self.activations.experts(layer, self.position).coefficients
        groups = (
            NeuronSubvalues(m[0], mixture.expert(number).W_out, mixture.passage, scale)
            for number, m in coefficients.items()
        )
        return ExpertParts(JoinedSubvalues(tuple(groups)), {}, tuple(coefficients), mixture)

    def _post_scale(self, layer: int, sublayer: str) -> Float[Tensor, " 1"] | None:
        scale = self.activations.post_scale(layer, sublayer, self.position)
        return None if scale is None else scale[0]
