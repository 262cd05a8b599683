"""Scores of FFN neurons at the trace's position that take no gradient: sizes, direct logit attribution."""

from dataclasses import replace

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
