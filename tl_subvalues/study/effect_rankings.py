"""Rankings by what parts do through the rest of the model: total effects by each rule, and integrated gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.subvalues import NeuronSubvalues
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.study.ranked import (
    ATTN_NEURONS,
    FFN_NEURONS,
    FFN_NEURONS_AT_POSITIONS,
    Contenders,
    Ranking,
    ScoresTogether,
    TopsTogether,
    ffn_parts,
)
from tl_subvalues.tracing.effect_tables import effect_tables, prompted
from tl_subvalues.tracing.trace import Trace
from tl_subvalues.upstream.covectors import Covectors, Entering
from tl_subvalues.upstream.effects import Wanted
from tl_subvalues.upstream.gradient import Asked, gradients
from tl_subvalues.upstream.integrated import integrated_effects
from tl_subvalues.upstream.led_back import EffectRule
from tl_subvalues.upstream.summed import summed_effects


def gradient_times_activation() -> Ranking:
    """Coefficient times gradient, m · ∂ measure / ∂ m, exact through all that follows the neuron.

    It is the total effect by gradient at the trace's position; the neuron is ablated everywhere, as by its increase.
    """

    def many(traces: Sequence[Trace]) -> list[Float[Tensor, " neuron"]]:
        made = [_AtTheLast(trace.position, dict(ffn_parts(trace)), {}) for trace in traces]
        gradients(
            [
                Asked(trace.run, trace.tokens, trace.target, trace.position + 1, own.take)
                for trace, own in zip(traces, made, strict=True)
            ]
        )
        return [own.scores() for own in made]

    return Ranking(ScoresTogether(many), of=FFN_NEURONS)


@dataclass(frozen=True)
class _AtTheLast:
    """Scores of FFN neurons at one position as covectors come."""

    position: int
    parts: dict[int, NeuronSubvalues]
    found: dict[int, Tensor]

    @torch.no_grad()
    def take(self, covectors: Covectors | Entering) -> None:
        """One sublayer's covectors."""
        if isinstance(covectors, Covectors) and covectors.sublayer == "mlp":
            m, (gradient,) = self.parts[covectors.layer].coefficients, covectors.inner
            self.found[covectors.layer] = m * gradient[0, self.position].to(m)

    def scores(self) -> Float[Tensor, " neuron"]:
        """Layer after layer."""
        return torch.cat([self.found[layer] for layer in self.parts])


def neurons_at_positions(rule: EffectRule) -> Ranking:
    """The total effect of each FFN neuron at one position; that position alone is ablated."""
    return _by_effects(lambda k: Wanted("ffn_neuron", rule, "all", k, True), FFN_NEURONS_AT_POSITIONS, "")


def neurons_at_the_last(rule: EffectRule) -> Ranking:
    """The total effect of each FFN neuron at the trace's position; it is ablated everywhere, as by its increase."""
    return _by_effects(lambda k: Wanted("ffn_neuron", rule, "last", k, True), FFN_NEURONS, "@")


def attn_neurons(rule: EffectRule) -> Ranking:
    """The total effect of each attention neuron from each source position to the trace's.

    Its source is ablated wherever it is read, as by an attention neuron's increase.
    """
    return _by_effects(lambda k: Wanted("attn_neuron", rule, "last", k, True), ATTN_NEURONS, ">")


def _by_effects(wanted: Callable[[int | None], Wanted], of: Contenders, end: str) -> Ranking:
    """A ranking by a table of effects, whose labels go up to a sign."""

    @no_autocast_no_grad
    def tables(traces: Sequence[Trace], k: int | None) -> list[Any]:
        made = effect_tables(traces, wanted(k))
        return [table.assign(label=table["label"].str.partition(end)[0]) if end else table for table in made]

    def scores(traces: Sequence[Trace]) -> list[Float[Tensor, " part"]]:
        return [_in_order(trace, of, table) for trace, table in zip(traces, tables(traces, None), strict=True)]

    def tops(traces: Sequence[Trace], k: int) -> list[list[str]]:
        return [[str(label) for label in table["label"]] for table in tables(traces, k)]

    # Few enough to be scored one and all; and who puts other scores in their place is not led past them.
    return Ranking(ScoresTogether(scores), None if of is FFN_NEURONS else TopsTogether(tops), of=of)


def everywhere(of: Contenders, rule: EffectRule) -> Ranking:
    """The total effect of each FFN neuron or head, summed over all positions where it adds something."""

    @no_autocast_no_grad
    def many(traces: Sequence[Trace]) -> list[Float[Tensor, " part"]]:
        found = summed_effects([prompted(trace) for trace in traces], of.unit, rule)
        return [torch.cat([effects for groups in layers.values() for effects in groups]) for layers in found]

    return Ranking(ScoresTogether(many), of=of)


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
