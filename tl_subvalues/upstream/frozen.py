"""The frozen model: covectors led back through it, layer by layer.

Held at this run's values are the attention patterns, the scales of all norms, routing weights, and in every FFN the
factor that is not linear. Everything else is linear, so a covector γ of the final residual stream is led back exactly:

    FFN at position q         γ_mid[q] = γ_post[q] + Σ_n ⟨W_out[n], γ_post[q]⟩ · (frozen factor of n) · k_n
    attention, source s       γ_pre[s] = γ_mid[s] + Σ_h Σ_q pattern[h, q, s] · N_1^T W_V[h]^T W_O[h]^T γ_mid[q]

with k_n a neuron's subkey behind the frozen norm, post-norms and multipliers transposed where there are any. What a
component adds at a place, times γ there, is its total effect; the effects of embeddings and bias terms add up to the
score ⟨x_final, γ⟩ (the half rule is RelP's, arXiv 2508.21258).
"""

from collections.abc import Callable, Iterator

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.everywhere import HeadsEverywhere, heads, neurons
from tl_subvalues.decomposition.run import Run
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import check_coefficients, check_values
from tl_subvalues.upstream.covectors import Covectors, Entering
from tl_subvalues.upstream.projections import Projected, projected
from tl_subvalues.upstream.rules import Rule

# Covectors of what a sublayer reads, to be added on the way back: those of neurons that read there.
Reading = Callable[[int, str], Float[Tensor, "n pos d_model"] | None]


def nothing(layer: int, sublayer: str) -> None:
    """No neurons read on the way."""
    return


def back(
    run: Run, rule: Rule, covectors: Float[Tensor, "n pos d_model"], reading: Reading = nothing
) -> Iterator[Covectors | Entering]:
    """Covectors of the final residual stream at the first positions, led back: those of every sublayer, the last first.

    Raises:
        UnsupportedModelError: naming a layer whose parts cannot be told apart, or a mixer.
    """
    n = covectors.shape[1]
    for layer in reversed(run.view.layers):
        into_pre = torch.zeros_like(covectors)
        for sublayer in reversed(layer.sublayers):
            if sublayer == "mlp":
                here, read = _through_ffn(run, layer.layer, rule, n, covectors)
            elif sublayer == "attn":
                here, read = _through_attention(run, layer.layer, n, covectors)
            else:
                raise UnsupportedModelError(
                    f"{run.view.name}: layer {layer.layer} has a {sublayer} sublayer, which is not linear in what it "
                    "reads, so nothing can be led back through it; rule='gradient' can."
                )
            yield here
            more = reading(layer.layer, sublayer)
            read = read if more is None else read + more
            if layer.reads_mid(sublayer):
                covectors = covectors + read
            else:
                into_pre = into_pre + read
        covectors = covectors + into_pre
    yield Entering(covectors)


def _through_ffn(
    run: Run, layer: int, rule: Rule, n: int, covectors: Float[Tensor, "k pos d_model"]
) -> tuple[Covectors, Float[Tensor, "k pos d_model"]]:
    """Covectors of an FFN's neurons, and of what it reads."""
    x = run.activations.residual(layer, "mlp")[0, :n]
    read, bias, inner = torch.zeros_like(covectors), _constant(run, layer, "mlp", covectors), []
    for group in neurons(run, layer, n):
        own = group.inner(covectors)
        inner.append(own)
        made = projected(run, layer, group, x)
        what = "its subkeys do not give its FFN coefficients"
        check_coefficients(run.view, layer, what, made.coefficients, group.coefficients)
        found, added = _through_neurons(rule, made, own, x)
        read, bias = read + found, bias + added
    return Covectors(layer, "mlp", covectors, tuple(inner), bias), read


def _through_neurons(
    rule: Rule, made: Projected, inner: Float[Tensor, "k pos neuron"], x: Float[Tensor, "pos d_model"]
) -> tuple[Float[Tensor, "k pos d_model"], Float[Tensor, " k"]]:
    """Covectors of what neurons read, given those of their coefficients, and what their bias terms add."""
    factors = rule.factors(made)
    if factors is None:
        return inner.new_zeros(*inner.shape[:2], x.shape[-1]), inner.new_zeros(len(inner))
    read, bias = made.up.read_back(inner * factors.up, x)
    if factors.gate is not None and made.gate is not None:
        own, added = made.gate.read_back(inner * factors.gate, x)
        read, bias = read + own, bias + added
    for constant in factors.constants:
        bias = bias + (inner * constant).sum((1, 2))
    return read, bias


def _through_attention(
    run: Run, layer: int, n: int, covectors: Float[Tensor, "k pos d_model"]
) -> tuple[Covectors, Float[Tensor, "k pos d_model"]]:
    """Covectors of z, and of what the heads read at their source positions."""
    parts, attention = heads(run, layer, n), run.view.layer(layer).attention()
    check_values(run.view, layer, run.activations, slice(n))
    inner = parts.inner(covectors)
    read, bias = attention.read_back(_of_values(parts, inner), run.activations.residual(layer, "attn")[0, :n])
    return Covectors(layer, "attn", covectors, (inner,), bias + _constant(run, layer, "attn", covectors)), read


def _of_values(parts: HeadsEverywhere, inner: Float[Tensor, "k pos head dim"]) -> Float[Tensor, "k key head dim"]:
    """Covectors of the values, from those of z: each position's, by how much it is looked at."""
    return einops.einsum(parts.pattern, inner, "head pos key, k pos head dim -> k key head dim")


def _constant(run: Run, layer: int, sublayer: str, covectors: Float[Tensor, "k pos d_model"]) -> Float[Tensor, " k"]:
    """What a sublayer's own output bias adds, and that of what stands between it and the residual stream."""
    constants = run.biases(layer, sublayer, slice(covectors.shape[1]))
    return einops.einsum(constants, covectors, "pos d, k pos d -> k")
