"""Does what we read of a run add up? Checked on every trace; what does not is refused, never decomposed wrong.

Tolerances are relative: of a block's sum, to the largest entry of the residual stream; of a sublayer's parts, to what
the parts themselves amount to (a residual stream can be thousands of times larger: 22,543 at the first position of
SmolLM2-135M, where attention adds 7); of the readout, to the largest centred logit. Seen
on tiny random models of all dense families: sums 5.5e-3 in bfloat16, 7e-4 in float16, below 1e-5 in float32. float64
models are held to float32's rounding, for the RMS norms of many families compute in float32 whatever comes in.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.errors import UnknownSourcesError, UnsupportedModelError
from tl_subvalues.model_view.activations import Activations
from tl_subvalues.model_view.equalities import Equality, SizeOfSum, require_equal
from tl_subvalues.model_view.experts import Routed
from tl_subvalues.model_view.faults import warn_of_faults
from tl_subvalues.model_view.indexing import Positions
from tl_subvalues.model_view.layers import Layer
from tl_subvalues.model_view.view import ModelView
from tl_subvalues.numerics.norms import Passage
from tl_subvalues.numerics.weight_rows import length_of_all

_SUM_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# Of coefficients and values computed anew from the residual stream, to their largest; see test_activation.py.
_KEY_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Half-precision models round the logits themselves (one part in 256 for bfloat16); float32 ones differ by the
# order of summation: at most 7e-7 was seen, on the tiny random models and on the 135M one.
_LOGIT_TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}

# Numbers of a weight that are converted at a time.
_NUMBERS = 1 << 24


def sum_tolerance(view: ModelView) -> float:
    """By how much sums of parts may be off for rounding, relative to what is summed."""
    return _SUM_TOLERANCE[view.dtype]


def check_run(view: ModelView, activations: Activations, position: int) -> None:
    """Check one prompt's run at one position: no NaN, blocks add up, heads and neurons add up to their sublayer.

    Raises:
        ValueError: if the residual stream holds NaN or infinite numbers.
        UnsupportedModelError: naming the layer and the sum that does not hold.
    """
    check_finite(view, activations)
    check_sums(view, activations, position)


def check_finite(view: ModelView, activations: Activations) -> None:
    """Check that the residual stream holds no NaN.

    Raises:
        ValueError: if it holds NaN or infinite numbers, naming layer and position.
    """
    if not activations.is_finite():
        for layer in range(view.n_layers + 1):
            _require_finite(view, layer, activations.first_infinite(layer))


def check_sums(view: ModelView, activations: Activations, position: int) -> None:
    """Check that blocks, heads and neurons of one prompt or several add up at one position, each prompt by itself.

    Raises:
        UnsupportedModelError: naming the layer and the sum that does not hold.
    """
    warn_of_faults(view.model)
    require_equal(
        view.name, (one for layer in view.layers for one in _sums_of_block(view, layer, activations, position))
    )


def check_readout(view: ModelView, ours: Float[Tensor, " vocab"], theirs: Float[Tensor, " vocab"]) -> None:
    """Check that the log-probs that we read off the final residual stream are the model's own.

    Raises:
        UnsupportedModelError: if they differ by more than rounding.
        ValueError: if they hold NaN or infinite numbers.
    """
    own = theirs.to(ours).log_softmax(-1)
    finite = torch.isfinite(ours).all() & torch.isfinite(own).all()
    numbers = [(theirs - theirs.mean()).abs().max().to(own), (ours - own).abs().max(), finite.to(own)]
    spread, error, known = torch.stack(numbers).tolist()
    if not known:
        raise ValueError(
            f"the log-probs of {view.name} hold NaN or infinite numbers, though its residual stream does not; check "
            "the weights of its final norm and unembedding."
        )
    if not error <= _LOGIT_TOLERANCE[view.dtype] * max(1.0, spread):
        raise UnsupportedModelError(
            f"{view.name}: the final norm and the unembedding do not give the model's own log-probs (off by up to "
            f"{error:.2g} nats), so something else stands between them; its readout is not covered."
        )


def check_cached_logits(view: ModelView, activations: Activations, position: int) -> None:
    """Check that a given cache's logits, where it holds them, are what the readout makes of its residual stream.

    Raises:
        ValueError: if the final norm or the unembedding is another than when the cache was made.
    """
    seen, norm = activations.unembedded(position), view.readout.norm
    if seen is None or view.readout.normalised:
        return
    x = activations.final_residual(position)
    own = view.readout.unembed(x if norm is None else norm(x))
    error = (own.log_softmax(-1) - seen.log_softmax(-1)).abs().max().item()
    if not error <= _LOGIT_TOLERANCE[view.dtype] * max(1.0, (seen - seen.mean()).abs().max().item()):
        raise ValueError(
            f"the cache's logits are not what the final norm and the unembedding of {view.name} make of its residual "
            f"stream now (off by up to {error:.2g} nats): were they edited since? Make the cache anew."
        )


def check_final_scale(view: ModelView, activations: Activations, position: int) -> None:
    """Check that the final norm's cached scale is that of the final residual stream.

    Raises:
        ValueError: if it is another run's, or was edited.
    """
    norm, cached = view.readout.norm, activations.final_scale(position)
    if norm is None or cached is None:
        return
    own = norm.scale(activations.final_residual(position))
    # The scale is computed in float32 from the same tensor; 1e-6 was seen, in half precision too.
    if not torch.allclose(cached, own, rtol=1e-4):
        raise ValueError(
            f"the final norm's scale in the cache ({cached.item():.4g}) is not that of its final residual stream "
            f"({own.item():.4g}); make the cache in one run, or leave cache=None."
        )


def check_values(
    view: ModelView,
    layer: int,
    activations: Activations,
    positions: Positions,
    heads: Int[Tensor, " n"] | None = None,
    dims: Int[Tensor, " n"] | None = None,
) -> None:
    """Check that what we read of a layer's value weights and norm gives its values at some positions.

    With heads and dims, these alone are held to it: in the others a hook may have acted.

    Raises:
        UnsupportedModelError: if it does not, or if the weights cannot be read.
    """
    attention = view.layer(layer).attention()
    if attention.W_V is None:
        why = "hides its attention's value weights"
        if view.layer(layer).latent:
            why = "has latent attention, whose values are read through a norm of their own, with a scale of its own"
        raise UnsupportedModelError(
            f"{view.name}: layer {layer} {why}, so the activation scores of its attention neurons cannot be made; its "
            "subvalues still can."
        )
    computed = attention.values_of(activations.residual(layer, "attn", positions).flatten(0, -2))
    seen, what = activations.values(layer)[:, positions].reshape(computed.shape), "its value weights do not give its"
    if heads is None or dims is None:
        check_coefficients(view, layer, f"{what} values", computed, seen)
        return
    own, theirs = (each[:, heads.to(each.device), dims.to(each.device)] for each in (computed, seen))
    check_coefficients(view, layer, f"{what} values", own, theirs, computed)


def check_coefficients(
    view: ModelView,
    layer: int,
    what: str,
    computed: Float[Tensor, "batch *neuron"],
    seen: Float[Tensor, "batch *neuron"],
    among: Float[Tensor, "batch *all"] | None = None,
) -> None:
    """Check that coefficients or values, computed anew from the residual stream, are those of the run.

    Args:
        view: the model.
        layer: whose they are.
        what: is wrong if they are not.
        computed: from weights and residual stream.
        seen: in the run.
        among: all of the sublayer's, computed anew, whose size rounding is measured by, where these are some of them.

    Raises:
        UnsupportedModelError: if they are not.
    """
    size = None if among is None else among.abs().max()
    require_equal(view.name, [Equality(layer, what, computed, seen, _KEY_TOLERANCE[view.dtype], size)])


def _sums_of_block(view: ModelView, layer: Layer, activations: Activations, position: int) -> Iterator[Equality]:
    """What must be equal in a block."""
    tolerance = sum_tolerance(view)
    number = layer.layer
    if layer.unknown() or not layer.sublayers:
        raise UnsupportedModelError(
            f"{view.name}: layer {number} holds something that is no attention, no FFN and no known mixer "
            f"({', '.join(layer.unknown()) or 'one opaque module'}), which is not covered; {_way_out(view)}."
        )
    x = activations.residual(number, "attn", position)
    last = number == view.n_layers - 1
    after = activations.final_residual(position) if last else activations.residual(number + 1, "attn", position)
    parts = x
    outputs = {sublayer: activations.output(number, sublayer, position) for sublayer in layer.sublayers}
    first = [sublayer for sublayer in layer.sublayers if sublayer != "mlp"]
    for sublayer in first:
        parts = parts + outputs[sublayer]
    if layer.has_ffn and layer.reads_mid("mlp"):
        mid = activations.residual(number, "mlp", position)
        if first:
            yield Equality(number, f"resid_pre + {'_out + '.join(first)}_out is not resid_mid", parts, mid, tolerance)
        parts = mid
    if layer.has_ffn:
        parts = parts + outputs["mlp"]
    what = "its sublayers' outputs do not add up to the residual stream after it"
    yield Equality(number, what, parts, after, tolerance)
    if layer.has_attn:
        yield from _sum_of_heads(view, layer, activations, position, outputs["attn"])
    if layer.has_ffn:
        yield from _sum_of_neurons(view, layer, activations, position, outputs["mlp"])


def _way_out(view: ModelView) -> str:
    has = {"attn_subvalues": [x.has_attn for x in view.layers], "ffn_subvalues": [x.has_ffn for x in view.layers]}
    left = [name for name, layers in has.items() if any(layers)]
    return f"{' and '.join(left)} still work on the layers that have those" if left else "use a model with attention"


def _sum_of_heads(
    view: ModelView, layer: Layer, activations: Activations, position: int, expected: Tensor
) -> Iterator[Equality]:
    try:
        attention = layer.attention()
    except UnsupportedModelError:
        return  # refused by name when its heads are asked for
    number = layer.layer
    z = activations.z(number, position).flatten(1)
    out = attention.rows.sum(z)
    scale = activations.post_scale(number, "attn", position)
    out = _carried(attention.passage, out, attention.b_O, scale)
    size = SizeOfSum(z, attention.rows.lengths, out.shape[-1], _stretches(attention.passage, scale, len(z)))
    what = "its heads do not add up to its attention output"
    yield Equality(number, what, out, expected, sum_tolerance(view), size)


def check_sources(view: ModelView, activations: Activations, layer: int, positions: Positions) -> None:
    """Check that a layer's values, weighted by its pattern, add up to its z; no check where a cache has no z.

    Raises:
        UnknownSourcesError: if they do not, so that heads cannot be told apart by source position.
    """
    pattern = activations.pattern(layer, positions)
    if pattern.numel():
        mixed = torch.einsum("bh...k,bkhe->b...he", pattern, activations.values(layer))
        for missing in mixing_errors(activations, {layer: mixed}, positions).values():
            refused = unknown_sources(view, layer, *missing)
            if refused is not None:
                raise refused


def mixing_errors(
    activations: Activations, mixed: Mapping[int, Float[Tensor, "*rest head d_head"]], positions: Positions
) -> dict[int, tuple[float, float]]:
    """By how much what heads took from all source positions misses their z, and how large z is, layer by layer.

    Layers without a z are left out. Those of one shape are compared together; an accelerator is waited for once.
    """
    alike: dict[torch.Size, list[int]] = {}
    for layer, own in mixed.items():
        if activations.has(f"blocks.{layer}.attn.hook_z"):
            alike.setdefault(own.shape, []).append(layer)
    found = []
    for layers in alike.values():
        zs = torch.stack([activations.z(layer, positions) for layer in layers]).flatten(1)
        missing = torch.stack([mixed[layer] for layer in layers]).flatten(1) - zs
        found.append(torch.stack([missing.abs().amax(1), zs.abs().amax(1)], 1))
    numbers = torch.cat(found).tolist() if found else []
    each = [layer for layers in alike.values() for layer in layers]
    return {layer: (error, size) for layer, (error, size) in zip(each, numbers, strict=True)}


def unknown_sources(view: ModelView, layer: int, error: float, size: float) -> UnknownSourcesError | None:
    """What to raise where what `mixing_errors` found is more than rounding."""
    if error <= _SUM_TOLERANCE[view.dtype] * size:
        return None
    return UnknownSourcesError(
        f"{view.name}: layer {layer}'s values, weighted by its pattern, do not add up to its z (off by {error:.2g} "
        f"where entries reach {size:.2g}): something acts on z after the mixing (a gate, as in Qwen 3 Next, or a "
        "hook), so it cannot be told apart by source position; ask for heads, by='head' or trace.heads()."
    )


def _sum_of_neurons(
    view: ModelView, layer: Layer, activations: Activations, position: int, expected: Tensor
) -> Iterator[Equality]:
    number = layer.layer
    try:
        ffn = layer.ffn() if layer.mixture() is None else None
    except UnsupportedModelError:
        return  # refused by name when its neurons are asked for
    if ffn is None:
        yield _sum_of_experts(view, activations, number, position, activations.experts(number, position))
        return
    m = activations.coefficients(number, ffn.W_out.shape[0], position)
    out = ffn.rows.sum(m)
    scale = activations.post_scale(number, "mlp", position)
    out = _carried(ffn.passage, out, ffn.b_out, scale)
    size = SizeOfSum(m, ffn.rows.lengths, out.shape[-1], _stretches(ffn.passage, scale, len(m)))
    what = "its FFN neurons do not add up to its FFN output"
    yield Equality(number, what, out, expected, sum_tolerance(view), size)


def check_experts(view: ModelView, activations: Activations, layer: int, positions: Positions, routed: Routed) -> None:
    """Check that the neurons of a mixture's experts, routed anew, add up to what the run added at these positions.

    Raises:
        UnsupportedModelError: if they do not.
    """
    require_equal(view.name, [_sum_of_experts(view, activations, layer, positions, routed)])


def _sum_of_experts(
    view: ModelView, activations: Activations, layer: int, positions: Positions, routed: Routed
) -> Equality:
    mixture = view.layer(layer).mixture()
    assert mixture is not None
    expected = activations.output(layer, "mlp", positions)
    out, squares = torch.zeros_like(expected), expected.new_zeros(())
    for number, m in routed.coefficients.items():
        W_out = mixture.expert(number).W_out
        out += torch.cat([m @ block.to(m).T for block in W_out.T.split(max(1, _NUMBERS // len(W_out)))], -1)
        squares = squares + _sizes(m, length_of_all(W_out), W_out.shape[1]).pow(2)
    scale = activations.post_scale(layer, "mlp", positions)
    out = _carried(mixture.passage, out, routed.bias, scale)
    size = squares.sqrt() * torch.tensor(_stretches(mixture.passage, scale, 1)).to(squares)
    what = "its experts' neurons do not add up to its FFN output"
    return Equality(layer, what, out, expected, sum_tolerance(view), size)


def _carried(passage: Passage, out: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """A sum of parts and its bias, if any, as they enter the residual stream."""
    carried = passage.carry(out, scale)
    if bias is None and passage.adds_nothing:
        return carried
    bias = torch.zeros_like(out) if bias is None else bias.to(out).expand_as(out)
    return carried + passage.carry_bias(bias, scale)


def _sizes(coefficients: Tensor, lengths: Float[Tensor, "*row"], d_model: int) -> Float[Tensor, " batch"]:
    """Size of an entry that rounding should be measured by: of a sum of so many terms, were they not to cancel.

    Args:
        coefficients: of the rows.
        lengths: of each row, or of all together.
        d_model: how many entries a row has.
    """
    return coefficients.flatten(1).norm(dim=1) * (lengths.norm().to(coefficients) / d_model**0.5)


def _stretches(passage: Passage, scale: Float[Tensor, "batch *rest"] | None, batch: int) -> list[float]:
    """By how much each prompt's vectors are lengthened at most on their way into the residual stream."""
    return [passage.stretch(None)] * batch if scale is None else [passage.stretch(one) for one in scale]


def _require_finite(view: ModelView, layer: int, position: int | None) -> None:
    if position is None:
        return
    place = f"entering layer {layer}" if layer < view.n_layers else "after the last layer"
    raise ValueError(
        f"the residual stream of {view.name} {place} holds NaN or infinite numbers (first at position {position}); "
        "check the weights, or load the model in float32 if its dtype overflows."
    )
