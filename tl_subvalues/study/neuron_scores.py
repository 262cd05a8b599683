"""Scores of FFN neurons at the trace's position: sizes, direct logit attribution, coefficient × gradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.readout import Readout
from tl_subvalues.study.ranked import ffn_parts
from tl_subvalues.tracing.trace import Trace


def coefficient(trace: Trace) -> Float[Tensor, " neuron"]:
    """|m|, the size of the neuron's coefficient."""
    return torch.cat([parts.coefficients.abs() for _, parts in ffn_parts(trace)])


@no_autocast_no_grad
def norm(trace: Trace) -> Float[Tensor, " neuron"]:
    """‖W_out row‖, as it enters the residual stream (through a post-norm at the run's scale)."""
    ones = [replace(parts, coefficients=torch.ones_like(parts.coefficients)) for _, parts in ffn_parts(trace)]
    return torch.cat([parts.norms(lambda v: v) for parts in ones])


@no_autocast_no_grad
def coefficient_times_norm(trace: Trace) -> Float[Tensor, " neuron"]:
    """|m| ‖W_out row‖, the length of the subvalue."""
    return torch.cat([parts.norms(lambda v: v) for _, parts in ffn_parts(trace)])


@no_autocast_no_grad
def direct_logit_attribution(trace: Trace) -> Float[Tensor, " neuron"]:
    """The target's bs-value of the subvalue, at the final scale of the run (before a logit soft cap)."""
    readout = Readout.frozen_at(trace.run.view, trace.run.activations, trace.position)
    at = readout.scale_at(trace.run.activations.final_residual(trace.position)[0])
    column = readout.pulled_back(trace.reading.logit_column(), at)
    return torch.cat([parts.inner_products(column) for _, parts in ffn_parts(trace)])


def gradient_times_activation(trace: Trace) -> Float[Tensor, " neuron"]:
    """Coefficient times gradient, m · ∂ measure / ∂ m, exact through all that follows the neuron."""
    view, deltas = trace.run.view, dict[int, Tensor]()

    def adding(layer: int) -> Callable[..., Tensor]:
        def add_zero(value: Tensor, hook: Any) -> Tensor:
            # Adding a zero that asks for its gradient leaves the graph between the layers whole.
            deltas[layer] = torch.zeros_like(value[0, trace.position], requires_grad=True)
            padded = torch.zeros_like(value)
            padded[0, trace.position] = 1
            return value + padded * deltas[layer]

        return add_zero

    parts = ffn_parts(trace)
    hooks = [(view.layer(layer).hook("mlp.hook_post"), adding(layer)) for layer, _ in parts]
    with torch.inference_mode(False), torch.enable_grad():
        logits = view.logits(trace.tokens[None], hooks)[0, trace.position]
        value = trace.target.value(logits.to(view.compute_dtype).log_softmax(-1))
        gradients = torch.autograd.grad(value, [deltas[layer] for layer, _ in parts])
    return torch.cat([m.coefficients * g.to(m.coefficients) for (_, m), g in zip(parts, gradients, strict=True)])
