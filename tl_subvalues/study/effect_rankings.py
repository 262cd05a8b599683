"""Rankings by what parts do through the rest of the model: total effects by each rule, and integrated gradients."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.study.ranked import (
    ATTN_NEURONS,
    FFN_NEURONS,
    FFN_NEURONS_AT_POSITIONS,
    Contenders,
    Ranking,
)
from tl_subvalues.tracing.trace import Trace
from tl_subvalues.upstream.integrated import integrated_effects
from tl_subvalues.upstream.led_back import EffectRule
from tl_subvalues.upstream.summed import summed_effects


def neurons_at_positions(rule: EffectRule) -> Ranking:
    """The total effect of each FFN neuron at one position; that position alone is ablated."""

    def scores(trace: Trace) -> Float[Tensor, " part"]:
        table = trace.effects("ffn_neuron", top=None, rule=rule)
        return _in_order(trace, FFN_NEURONS_AT_POSITIONS, table)

    def top(trace: Trace, k: int) -> list[str]:
        return [str(label) for label in trace.effects("ffn_neuron", top=k, rule=rule, largest=True)["label"]]

    return Ranking(scores, top, of=FFN_NEURONS_AT_POSITIONS)


def neurons_at_the_last(rule: EffectRule) -> Ranking:
    """The total effect of each FFN neuron at the trace's position; it is ablated everywhere, as by its increase."""

    def scores(trace: Trace) -> Float[Tensor, " neuron"]:
        table = trace.effects("ffn_neuron", top=None, positions="last", rule=rule)
        return _in_order(trace, FFN_NEURONS, table.assign(label=table["label"].str.partition("@")[0]))

    return Ranking(scores, of=FFN_NEURONS)


def everywhere(of: Contenders, rule: EffectRule) -> Ranking:
    """The total effect of each FFN neuron or head, summed over all positions where it adds something."""

    @no_autocast_no_grad
    def scores(trace: Trace) -> Float[Tensor, " part"]:
        final = trace.run.activations.final_residual(trace.position)[0]
        gamma = trace.readout.gradient(trace.target, final)
        layers = summed_effects(trace.run, trace.tokens, trace.target, gamma, of.unit, rule)
        return torch.cat([effects for groups in layers.values() for effects in groups])

    return Ranking(scores, of=of)


def attn_neurons(rule: EffectRule) -> Ranking:
    """The total effect of each attention neuron from each source position to the trace's.

    Its source is ablated wherever it is read, as by an attention neuron's increase.
    """

    def effects(trace: Trace, top: int | None) -> Any:
        table = trace.effects("attn_neuron", top=top, positions="last", rule=rule, largest=True)
        return table.assign(label=table["label"].str.partition(">")[0])

    def scores(trace: Trace) -> Float[Tensor, " part"]:
        return _in_order(trace, ATTN_NEURONS, effects(trace, None))

    def top(trace: Trace, k: int) -> list[str]:
        return [str(label) for label in effects(trace, k)["label"]]

    return Ranking(scores, top, of=ATTN_NEURONS)


def _in_order(trace: Trace, of: Contenders, table: Any) -> Float[Tensor, " part"]:
    """A table's total effects in the order of the contenders, all of which it has."""
    labels = of.labels(trace, torch.arange(of.count(trace)))
    effects = table.set_index("label")["total_effect"].loc[labels]
    return torch.from_numpy(effects.to_numpy(dtype="float64", copy=True))


def integrated(of: Contenders, steps: int = 8) -> Ranking:
    """Integrated gradients of each FFN neuron or head from zero, summed over positions (Sundararajan et al. 2017).

    The outputs of all FFN sublayers, or all attention sublayers, go from 0 to those of the run together; a part's score
    is ⟨what it adds, the mean gradient on the way⟩, in nats. Up to the steps' error the parts and the sublayers' bias
    terms add up to the measure less its value with those outputs at zero, unless a router turns to other experts on the
    way, which is a leap that no gradient sees.

    Args:
        of: FFN neurons or heads.
        steps: midpoints of the way, each a forward and a backward pass.
    """

    @no_autocast_no_grad
    def scores(trace: Trace) -> Float[Tensor, " part"]:
        layers = integrated_effects(trace.run, trace.tokens, trace.target, of.unit, steps, slice(None))
        return torch.cat([effects.sum(0) for groups in layers.values() for effects in groups])

    return Ranking(scores, of=of)


def integrated_at_positions(steps: int = 8) -> Ranking:
    """Integrated gradients of each FFN neuron at one position; that position alone is ablated."""

    @no_autocast_no_grad
    def scores(trace: Trace) -> Float[Tensor, " part"]:
        seen = slice(0, trace.position + 1)
        layers = integrated_effects(trace.run, trace.tokens, trace.target, "ffn_neuron", steps, seen)
        return torch.cat([effects for groups in layers.values() for effects in groups], dim=1).flatten()

    return Ranking(scores, of=FFN_NEURONS_AT_POSITIONS)


def integrated_at_the_last(steps: int = 8) -> Ranking:
    """Integrated gradients of each FFN neuron at the trace's position; it is ablated everywhere."""

    @no_autocast_no_grad
    def scores(trace: Trace) -> Float[Tensor, " neuron"]:
        layers = integrated_effects(trace.run, trace.tokens, trace.target, "ffn_neuron", steps, _last(trace))
        return torch.cat([effects[0] for groups in layers.values() for effects in groups])

    return Ranking(scores, of=FFN_NEURONS)


def integrated_attn_neurons(steps: int = 8) -> Ranking:
    """Integrated gradients of each attention neuron from each source position to the trace's, ablated as above."""

    @no_autocast_no_grad
    def scores(trace: Trace) -> Float[Tensor, " part"]:
        layers = integrated_effects(trace.run, trace.tokens, trace.target, "attn_neuron", steps, _last(trace))
        candidates = trace.candidates("attn_neuron")
        fields = candidates.parts.fields(*candidates.numbering.locate(torch.arange(len(candidates))))
        found = torch.zeros(len(candidates), dtype=trace.run.view.compute_dtype)
        for layer, (effects,) in layers.items():
            own = fields["layer"] == layer
            found[own] = effects[0].cpu()[fields["position"][own], fields["head"][own], fields["dim"][own]]
        return found

    return Ranking(scores, of=ATTN_NEURONS)


def _last(trace: Trace) -> slice:
    return slice(trace.position, trace.position + 1)
