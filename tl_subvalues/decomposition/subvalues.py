"""Attention and FFN outputs taken apart into subvalues that add up to them (arXiv 2312.12141, section 3).

    attention output at query q = sum over heads h, source positions p, indices i of  z_p[h, i] * W_O[h, i]  + b_O,
                                  z_p[h] = pattern[h, q, p] * v[h, p]
    FFN output                  = sum over neurons n of  m_n * W_out[n]  + b_out
    mixture of experts          = sum over experts e, neurons n of  w_e m_{e,n} * W_out[e, n]  + sum over e of  w_e b_e

What stands between the sublayer and the residual stream (a post-norm, a multiplier) is applied to each subvalue with
its scale frozen at the run's value. A `Subvalues` object is one sublayer's parts at one position, made on request
and never all at once; `attn_subvalues` and `ffn_subvalues` give them as tensors in TransformerLens's layout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.labels import attn_neuron_label, bias_label, ffn_neuron_label, head_label, head_position_label
from tl_subvalues.model_view import Activations, check_experts, check_sources, view_of
from tl_subvalues.model_view.indexing import index_of
from tl_subvalues.numerics.blocks import in_full_precision, length_of_all, padded
from tl_subvalues.numerics.norms import Passage

# Rows of weights converted at a time: 2,048 rows of 4,096 numbers are 32 MB.
_ROWS = 2048
# Source positions of a head made at a time.
_SOURCES = 32

AttnParts = Literal["head", "head_position", "neuron"]


@runtime_checkable
class Subvalues(Protocol):
    """The parts of one sublayer's output at one position, in a fixed order."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts, as they enter the residual stream."""
        ...

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part, without making the parts."""
        ...

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part; `linear` maps [n, d_model] row by row."""
        ...

    def longest(self) -> Float[Tensor, " all"]:
        """At least ‖v‖ for every part, made in one quick pass; for error estimates."""
        ...


@dataclass(frozen=True)
class WholeSubvalues:
    """Parts few enough to be held: sublayer outputs, heads."""

    stack: Float[Tensor, "component d_model"]

    def __len__(self) -> int:
        return len(self.stack)

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts."""
        return self.stack[index]

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part."""
        return self.stack @ covector

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part."""
        return linear(self.stack).norm(dim=-1)

    def longest(self) -> Float[Tensor, " all"]:
        """‖v‖ for every part."""
        return self.stack.norm(dim=-1)


@dataclass(frozen=True)
class NeuronSubvalues:
    """coefficient * direction, part i along direction i modulo their number.

    FFN neurons: one direction (row of W_out) each. Attention neurons: the rows of W_O, head by head, once per
    source position. Directions stay in the model's own dtype; only rows in use are converted.
    """

    coefficients: Float[Tensor, " component"]
    directions: Tensor  # [direction, d_model], the model's own weights
    passage: Passage
    scale: Float[Tensor, " 1"] | None

    def __len__(self) -> int:
        return len(self.coefficients)

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts."""
        chosen = (index % len(self.directions)).to(self.directions.device)
        rows = self.directions[chosen].to(self.coefficients)
        return self.passage.carry(self.coefficients[index, None] * rows, self.scale)

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part: one product with the directions, however many source positions there are."""
        pulled_back = self.passage.transposed(covector, self.scale)
        products = torch.cat([rows.to(pulled_back) @ pulled_back for rows in self.directions.split(_ROWS)])
        return (self.coefficients.view(-1, len(products)) * products).flatten()

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part, from the norms of the directions."""
        blocks = self.directions.split(_ROWS)
        each = [linear(self.passage.carry(rows.to(self.coefficients), self.scale)).norm(dim=-1) for rows in blocks]
        norms = torch.cat(each)
        return (self.coefficients.abs().view(-1, len(norms)) * norms).flatten()

    def longest(self) -> Float[Tensor, " all"]:
        """|coefficient| times the length of all directions together, as the passage may stretch it."""
        return self.coefficients.abs() * (length_of_all(self.directions) * self.passage.stretch(self.scale))


@dataclass(frozen=True)
class HeadPositionSubvalues:
    """What each head writes from each source position, heads outermost: part h * n_sources + p."""

    weighted: Float[Tensor, "head source d_head"]  # pattern * v
    W_O: Tensor  # [head, d_head, d_model], the model's own weights
    passage: Passage
    scale: Float[Tensor, " 1"] | None

    def __len__(self) -> int:
        return self.weighted.shape[0] * self.weighted.shape[1]

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts."""
        heads, sources = index // self.weighted.shape[1], index % self.weighted.shape[1]
        result = self.weighted.new_empty(len(index), self.W_O.shape[2])
        for head in heads.unique().tolist():
            mine, W_O = heads == head, self.W_O[head].to(self.weighted)
            # Always so many rows at a time, so that a part's bits do not depend on what is made with it.
            rows = padded(self.weighted[head, sources[mine]], _SOURCES)
            made = torch.cat([block @ W_O for block in rows.split(_SOURCES)])
            result[mine] = made[: int(mine.sum())]
        return self.passage.carry(result, self.scale)

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part, through W_O first."""
        pulled_back = self.W_O.to(covector) @ self.passage.transposed(covector, self.scale)
        return einops.einsum(self.weighted, pulled_back, "head source d_head, head d_head -> head source").flatten()

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part, the parts made in blocks."""
        blocks = torch.arange(len(self), device=self.weighted.device).split(_ROWS)
        return torch.cat([linear(self.vectors(index)).norm(dim=-1) for index in blocks])

    def longest(self) -> Float[Tensor, " all"]:
        """Length of z times that of its head's W_O, as the passage may stretch it."""
        heads = torch.linalg.vector_norm(self.W_O.flatten(1), dim=1, dtype=self.weighted.dtype).to(self.weighted)
        return (self.weighted.norm(dim=-1) * heads[:, None]).flatten() * self.passage.stretch(self.scale)


def weighted_values(
    pattern: Float[Tensor, "*rest head source"], values: Float[Tensor, "*rest source head d_head"]
) -> Float[Tensor, "*rest source head d_head"]:
    """z_p = pattern * v: what each head takes from each source position, for one query position."""
    return einops.rearrange(pattern, "... head source -> ... source head 1") * values


@in_full_precision
def attn_subvalues(
    model: Any,
    cache: Any,
    layer: int,
    *,
    by: AttnParts = "head",
    pos_slice: Any = -1,
    incl_bias: bool = False,
    return_labels: bool = False,
) -> (
    Float[Tensor, "component *batch_and_pos d_model"]
    | tuple[Float[Tensor, "component *batch_and_pos d_model"], list[str]]
):
    """One attention sublayer's output as a stack of subvalues, component axis first.

    Args:
        model: a TransformerLens model.
        cache: an ActivationCache of it.
        layer: which layer.
        by: "head" (label L23H4); "head_position", a head at one source position (L23H4@3), heads outermost; "neuron",
            an index of a head at one source position (L23H4D38@3), source positions outermost.
        pos_slice: query positions, as in ActivationCache; an int drops the position axis.
        incl_bias: the bias part comes last (label 23_attn_bias), and the stack sums to what enters the residual stream.
        return_labels: return (stack, labels).

    Returns:
        [component, batch, pos, d_model], without pos for an int and without batch if the cache has none.

    Raises:
        KeyError: if the cache lacks a hook, naming it.
        UnsupportedModelError: if the layer has no attention that can be decomposed.
        ValueError: for a layer or position out of range, or an unknown `by`.
    """
    if by not in ("head", "head_position", "neuron"):
        raise ValueError(f"by is 'head', 'head_position' or 'neuron', got {by!r}.")
    view = view_of(model)
    attention = view.layer(layer).attention()
    activations = Activations(view, cache)
    n_queries = activations.require_heads(layer) if by == "head" else activations.require_sources(layer)
    positions, single = _positions(n_queries, pos_slice)
    n_heads, d_head, _ = attention.W_O.shape
    W_O = attention.W_O
    if by == "head":
        z = activations.z(layer, positions)
        z = z.reshape(*z.shape[:2], n_heads, d_head)
        parts = einops.einsum(z, W_O.to(z), "b q h e, h e m -> h b q m")
        labels = [head_label(layer, head) for head in range(n_heads)]
    else:
        pattern = activations.pattern(layer, positions)
        values = activations.values(layer, n_heads)
        check_sources(view, activations, layer, positions)
        sources = values.shape[1]
        z = einops.einsum(pattern, values, "b h q p, b p h e -> p h e b q")
        if by == "head_position":
            parts = einops.einsum(z, W_O.to(z), "p h e b q, h e m -> h p b q m").flatten(0, 1)
            labels = [head_position_label(layer, head, p) for head in range(n_heads) for p in range(sources)]
        else:
            parts = (z[..., None] * W_O.to(z)[None, :, :, None, None, :]).flatten(0, 2)
            labels = [
                attn_neuron_label(layer, head, dim, p)
                for p in range(sources)
                for head in range(n_heads)
                for dim in range(d_head)
            ]
    scale = activations.post_scale(layer, "attn", positions)
    stack = attention.passage.carry(parts, scale)
    if incl_bias:
        stack = torch.cat([stack, _bias_part(stack, attention.passage, scale, attention.b_O)])
        labels.append(bias_label(layer, "attn"))
    stack = _drop_axes(stack, single, activations.batched)
    return (stack, labels) if return_labels else stack


@in_full_precision
def ffn_subvalues(
    model: Any,
    cache: Any,
    layer: int,
    *,
    neuron_slice: Any = None,
    pos_slice: Any = -1,
    incl_bias: bool = False,
    return_labels: bool = False,
) -> (
    Float[Tensor, "component *batch_and_pos d_model"]
    | tuple[Float[Tensor, "component *batch_and_pos d_model"], list[str]]
):
    """One FFN sublayer's output as a stack of neurons' subvalues (label L24N1005), component axis first.

    A mixture of experts gives the neurons of all experts that some of the tokens at `pos_slice` are sent to, expert by
    expert (label L3E5N10; a shared expert is counted after the routed ones); routing weights are in them.

    Args:
        model: a TransformerLens model.
        cache: an ActivationCache of it.
        layer: which layer.
        neuron_slice: which neurons (int, tuple, list, slice or None for all), as in ActivationCache; of each expert.
        pos_slice: positions, as in ActivationCache; an int drops the position axis.
        incl_bias: the bias part comes last (label 24_mlp_bias); with all neurons, the stack sums to what enters the
            residual stream.
        return_labels: return (stack, labels).

    Returns:
        [component, batch, pos, d_model], without pos for an int and without batch if the cache has none.

    Raises:
        KeyError: if the cache lacks a hook, naming it.
        UnsupportedModelError: if the layer has no neurons that can be read (a mixture of experts of an unknown kind).
        ValueError: for a layer, neuron or position out of range.
    """
    view = view_of(model)
    mixture = view.layer(layer).mixture()
    activations = Activations(view, cache)
    positions, single = _positions(activations.require_neurons(layer), pos_slice)
    coefficients: dict[int | None, Tensor]
    W_out: dict[int | None, Tensor]
    if mixture is None:
        ffn = view.layer(layer).ffn()
        passage, bias, W_out = ffn.passage, ffn.b_out, {None: ffn.W_out}
        coefficients = {None: activations.coefficients(layer, ffn.W_out.shape[0], positions)}
    else:
        routed = check_experts(view, activations, layer, positions)
        passage, bias = mixture.passage, routed.bias
        coefficients = dict(routed.coefficients.items())
        W_out = {expert: mixture.expert(expert).W_out for expert in routed.coefficients}
    parts, labels = [], []
    for expert, m in coefficients.items():
        neurons = torch.arange(m.shape[-1])[index_of(neuron_slice, m.shape[-1], "neuron")].reshape(-1)
        rows = W_out[expert][neurons.to(W_out[expert].device)].to(m)
        parts.append(einops.rearrange(m[..., neurons.to(m.device)], "b q n -> n b q 1") * rows[:, None, None])
        labels += [ffn_neuron_label(layer, neuron, expert) for neuron in neurons.tolist()]
    scale = activations.post_scale(layer, "mlp", positions)
    stack = passage.carry(parts[0] if len(parts) == 1 else torch.cat(parts), scale)
    if incl_bias:
        stack = torch.cat([stack, _bias_part(stack, passage, scale, bias)])
        labels.append(bias_label(layer, "mlp"))
    stack = _drop_axes(stack, single, activations.batched)
    return (stack, labels) if return_labels else stack


def _positions(n_positions: int, pos_slice: Any) -> tuple[slice | Tensor, bool]:
    """`pos_slice` as an index that keeps the axis, and whether it was one position."""
    positions = index_of(pos_slice, n_positions, "position")
    return (slice(positions, positions + 1), True) if isinstance(positions, int) else (positions, False)


def _bias_part(stack: Tensor, passage: Passage, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """The constant part of what enters the residual stream, as one more component: [1, batch, pos, d_model]."""
    zeros = torch.zeros_like(stack[0])
    return passage.carry_bias(zeros if bias is None else zeros + bias.to(zeros), scale)[None]


def _drop_axes(stack: Tensor, single_position: bool, batched: bool) -> Tensor:
    stack = stack[:, :, 0] if single_position else stack
    return stack if batched else stack[:, 0]
