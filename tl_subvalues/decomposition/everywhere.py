"""One sublayer's parts at all positions at once, for products with covectors that are there at all positions.

`Subvalues` are a sublayer's parts at one position, made one by one; these are never made. What is added is multiplied
with covectors in the sublayer's own space: z of the heads, coefficients of the neurons, where a product is one number.
"""

from dataclasses import dataclass, replace

import einops
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.run import Run
from tl_subvalues.labels import Unit
from tl_subvalues.model_view import check_experts, check_sources
from tl_subvalues.numerics.blocks import affine
from tl_subvalues.numerics.norms import Passage


@dataclass(frozen=True)
class WholeEverywhere:
    """A sublayer that is not taken apart, or an embedding: what it adds at every position."""

    outputs: Float[Tensor, "pos d_model"]

    def at(self, positions: slice) -> "WholeEverywhere":
        """The same at some positions."""
        return WholeEverywhere(self.outputs[positions])

    def inner(self, covectors: Float[Tensor, "n pos d_model"]) -> Float[Tensor, "n pos d_model"]:
        """Covectors of what it adds are those of the residual stream."""
        return covectors

    def products(self, unit: Unit, inner: Float[Tensor, "n pos d_model"]) -> Float[Tensor, "n pos"]:
        """⟨covector, what is added⟩."""
        return einops.einsum(self.outputs, inner, "pos d, n pos d -> n pos")

    def axes(self, unit: Unit) -> dict[str, int]:
        """What the products are counted along."""
        return {"at": len(self.outputs)}

    def coefficients_of(self, unit: Unit) -> Tensor | None:
        """It has none."""
        return None


@dataclass(frozen=True)
class HeadsEverywhere:
    """An attention sublayer: heads, at one source position or all, and their neurons."""

    z: Float[Tensor, "pos head d_head"]
    pattern: Float[Tensor, "head pos key"]
    values: Float[Tensor, "key head d_head"]
    W_O: Tensor  # [head, d_head, d_model], the model's own
    passage: Passage
    scale: Float[Tensor, "pos 1"] | None

    def at(self, positions: slice) -> "HeadsEverywhere":
        """The same where it is added at some positions."""
        scale = None if self.scale is None else self.scale[positions]
        return replace(self, z=self.z[positions], pattern=self.pattern[:, positions], scale=scale)

    def inner(self, covectors: Float[Tensor, "n pos d_model"]) -> Float[Tensor, "n pos head d_head"]:
        """Covectors of z."""
        n_heads, d_head, _ = self.W_O.shape
        carried = self.passage.transposed(covectors, self.scale)
        return affine(carried, self.W_O.flatten(0, 1).T, None).unflatten(-1, (n_heads, d_head))

    def products(self, unit: Unit, inner: Float[Tensor, "n pos head d_head"]) -> Float[Tensor, "n pos *axes"]:
        """⟨covector, part⟩ of heads, heads at source positions, or attention neurons."""
        if unit == "head":
            return einops.einsum(self.z, inner, "pos head dim, n pos head dim -> n pos head")
        if unit == "head_position":
            read = einops.einsum(self.values, inner, "key head dim, n pos head dim -> n pos key head")
            return read * einops.rearrange(self.pattern, "head pos key -> pos key head")
        return self._weighted * inner[:, :, None]

    def axes(self, unit: Unit) -> dict[str, int]:
        """What the products are counted along."""
        n_pos, n_heads, d_head = self.z.shape
        if unit == "head":
            return {"at": n_pos, "head": n_heads}
        axes = {"at": n_pos, "position": len(self.values), "head": n_heads}
        return axes if unit == "head_position" else {**axes, "dim": d_head}

    def coefficients_of(self, unit: Unit) -> Tensor | None:
        """Coefficients of attention neurons; heads have none."""
        return self._weighted if unit == "attn_neuron" else None

    @property
    def _weighted(self) -> Float[Tensor, "pos key head d_head"]:
        return einops.einsum(self.pattern, self.values, "head pos key, key head dim -> pos key head dim")


@dataclass(frozen=True)
class NeuronsEverywhere:
    """An FFN's neurons, or one expert's: `expert` is its number."""

    coefficients: Float[Tensor, "pos neuron"]
    directions: Tensor  # [neuron, d_model], the model's own
    passage: Passage
    scale: Float[Tensor, "pos 1"] | None
    expert: int | None = None

    def at(self, positions: slice) -> "NeuronsEverywhere":
        """The same at some positions."""
        scale = None if self.scale is None else self.scale[positions]
        return replace(self, coefficients=self.coefficients[positions], scale=scale)

    def inner(self, covectors: Float[Tensor, "n pos d_model"]) -> Float[Tensor, "n pos neuron"]:
        """Covectors of the coefficients."""
        return affine(self.passage.transposed(covectors, self.scale), self.directions.T, None)

    def products(self, unit: Unit, inner: Float[Tensor, "n pos neuron"]) -> Float[Tensor, "n pos neuron"]:
        """⟨covector, part⟩ of every neuron."""
        return self.coefficients * inner

    def axes(self, unit: Unit) -> dict[str, int]:
        """What the products are counted along."""
        n_pos, n_neurons = self.coefficients.shape
        return {"at": n_pos, "neuron": n_neurons}

    def coefficients_of(self, unit: Unit) -> Tensor | None:
        """Their coefficients."""
        return self.coefficients


Everywhere = WholeEverywhere | HeadsEverywhere | NeuronsEverywhere


def whole(run: Run, layer: int, sublayer: str, n: int) -> WholeEverywhere:
    """A sublayer's output at the first n positions."""
    return WholeEverywhere(run.activations.output(layer, sublayer)[0, :n])


def heads(run: Run, layer: int, n: int, sources: bool = True) -> HeadsEverywhere:
    """An attention sublayer at the first n positions; with what its heads read from each source position, or without.

    Raises:
        UnsupportedModelError: if its heads, or what they read from source positions, cannot be told apart.
    """
    attention, activations = run.view.layer(layer).attention(), run.activations
    if sources:
        check_sources(run.view, activations, layer, slice(n))
    scale = activations.post_scale(layer, "attn")
    z = activations.z(layer)[0, :n]
    return HeadsEverywhere(
        z=z.reshape(n, attention.n_heads, attention.d_head),
        pattern=activations.pattern(layer)[0, :, :n, :n] if sources else z.new_zeros(attention.n_heads, n, 0),
        values=activations.values(layer)[0, :n] if sources else z.new_zeros(0, attention.n_heads, attention.d_head),
        W_O=attention.W_O,
        passage=attention.passage,
        scale=None if scale is None else scale[0, :n],
    )


def neurons(run: Run, layer: int, n: int) -> list[NeuronsEverywhere]:
    """An FFN's neurons at the first n positions; of a mixture, those of every expert that some token is sent to.

    Raises:
        UnsupportedModelError: if the sublayer has no neurons that can be read.
    """
    block, activations = run.view.layer(layer), run.activations
    scale = activations.post_scale(layer, "mlp")
    scale = None if scale is None else scale[0, :n]
    mixture = block.mixture()
    if mixture is None:
        ffn = block.ffn()
        m = activations.coefficients(layer, len(ffn.W_out))[0, :n]
        return [NeuronsEverywhere(m, ffn.W_out, ffn.passage, scale)]
    routed = activations.experts(layer, slice(n))
    check_experts(run.view, activations, layer, slice(n), routed)
    return [
        NeuronsEverywhere(m[0], mixture.expert(number).W_out, mixture.passage, scale, number)
        for number, m in routed.coefficients.items()
    ]


def parts_everywhere(run: Run, layer: int, sublayer: str, unit: Unit, n: int) -> list[Everywhere]:
    """A sublayer's parts of one unit at the first n positions."""
    if unit == "sublayer":
        return [whole(run, layer, sublayer, n)]
    if sublayer == "attn":
        return [heads(run, layer, n, sources=unit != "head")]
    return [*neurons(run, layer, n)]


def first_positions(run: Run) -> int:
    """How many positions the run's own position can see: up to it, or all where a pattern looks ahead."""
    layers = [layer.layer for layer in run.view.layers if layer.has_attn]
    sees = run.n_sources(*layers)
    return run.position + 1 if sees <= run.position + 1 else run.n_positions
