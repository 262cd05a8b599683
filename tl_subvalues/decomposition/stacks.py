"""Subvalues of one layer as tensors in TransformerLens's layout, component axis first: the functional core.

`Subvalues` objects, which the traces use, make their parts on request; these make all of them at once, for hooks and
for analyses of one's own.
"""

from typing import Any, Literal, SupportsIndex

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.labels import Unit, bias_label, labels_of
from tl_subvalues.model_view import Activations, check_experts, check_sources, view_of
from tl_subvalues.model_view.indexing import index_of
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.numerics.norms import Passage


@no_autocast_no_grad
def attn_subvalues(
    model: Any,
    cache: Any,
    layer: SupportsIndex,
    *,
    by: Literal["head", "head_position", "neuron"] = "head",
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
    layer = view.layer(layer).layer
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
        axes: dict[str, int] = {"head": n_heads}
    else:
        pattern = activations.pattern(layer, positions)
        values = activations.values(layer)
        check_sources(view, activations, layer, positions)
        sources = values.shape[1]
        z = einops.einsum(pattern, values, "b h q p, b p h e -> p h e b q")
        if by == "head_position":
            parts = einops.einsum(z, W_O.to(z), "p h e b q, h e m -> h p b q m").flatten(0, 1)
            axes = {"head": n_heads, "position": sources}
        else:
            parts = (z[..., None] * W_O.to(z)[None, :, :, None, None, :]).flatten(0, 2)
            axes = {"position": sources, "head": n_heads, "dim": d_head}
    labels = _labels("attn_neuron" if by == "neuron" else by, layer, axes)
    scale = activations.post_scale(layer, "attn", positions)
    stack = attention.passage.carry(parts, scale)
    if incl_bias:
        stack = torch.cat([stack, _bias_part(stack, attention.passage, scale, attention.b_O)])
        labels.append(bias_label(layer, "attn"))
    stack = _drop_axes(stack, single, activations.batched)
    return (stack, labels) if return_labels else stack


@no_autocast_no_grad
def ffn_subvalues(
    model: Any,
    cache: Any,
    layer: SupportsIndex,
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
    layer = view.layer(layer).layer
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
        routed = activations.experts(layer, positions)
        check_experts(view, activations, layer, positions, routed)
        passage, bias = mixture.passage, routed.bias
        coefficients = dict(routed.coefficients.items())
        W_out = {expert: mixture.expert(expert).W_out for expert in routed.coefficients}
    parts, labels = [], []
    for expert, m in coefficients.items():
        neurons = torch.arange(m.shape[-1])[index_of(neuron_slice, m.shape[-1], "neuron")].reshape(-1)
        rows = W_out[expert][neurons.to(W_out[expert].device)].to(m)
        parts.append(einops.rearrange(m[..., neurons.to(m.device)], "b q n -> n b q 1") * rows[:, None, None])
        named = {"layer": [layer] * len(neurons), "neuron": neurons.tolist(), "expert": [expert] * len(neurons)}
        labels += labels_of("ffn_neuron", named)
    scale = activations.post_scale(layer, "mlp", positions)
    if not parts:  # no positions, so no expert is in use
        parts.append(activations.output(layer, "mlp", positions)[None][:0])
    stack = passage.carry(parts[0] if len(parts) == 1 else torch.cat(parts), scale)
    if incl_bias:
        stack = torch.cat([stack, _bias_part(stack, passage, scale, bias)])
        labels.append(bias_label(layer, "mlp"))
    stack = _drop_axes(stack, single, activations.batched)
    return (stack, labels) if return_labels else stack


def _labels(unit: Unit, layer: int, axes: dict[str, int]) -> list[str]:
    """Labels of all parts of a sublayer that are counted along these axes, the last one fastest."""
    grid = torch.cartesian_prod(*(torch.arange(size) for size in axes.values())).reshape(-1, len(axes))
    columns = {name: column.tolist() for name, column in zip(axes, grid.T, strict=True)}
    return labels_of(unit, {"layer": [layer] * len(grid), **columns})


def _positions(n_positions: int, pos_slice: Any) -> tuple[slice | Tensor, bool]:
    """`pos_slice` as an index that keeps the axis, and whether it was one position."""
    positions = index_of(pos_slice, n_positions, "position")
    return (slice(positions, positions + 1), True) if isinstance(positions, int) else (positions, False)


def _bias_part(stack: Tensor, passage: Passage, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """The constant part of what enters the residual stream, as one more component: [1, batch, pos, d_model]."""
    zeros = stack.new_zeros(stack.shape[1:])
    return passage.carry_bias(zeros if bias is None else zeros + bias.to(zeros), scale)[None]


def _drop_axes(stack: Tensor, single_position: bool, batched: bool) -> Tensor:
    stack = stack[:, :, 0] if single_position else stack
    return stack if batched else stack[:, 0]
