"""Rankings of the parts of a unit by their increases of the target's log-probability or probability, searched."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.importance.candidates import Candidates
from tl_subvalues.importance.search import rank
from tl_subvalues.importance.together import rank_together
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.study.ranked import NO_PROBABILITY, Contenders, Ranking, TopsTogether
from tl_subvalues.tracing.batch import share_readings
from tl_subvalues.tracing.trace import Trace


def by_increase(of: Contenders) -> Ranking:
    """How much each subvalue raises the target's measure, in nats: log p, or the difference asked for."""

    def scores(trace: Trace) -> Float[Tensor, " part"]:
        return _swept(trace.candidates(of.unit))

    def tops(traces: Sequence[Trace], k: int) -> list[list[str]]:
        share_readings(traces)
        return _tops(traces, [trace.candidates(of.unit) for trace in traces], k)

    return Ranking(scores, TopsTogether(tops), of=of)


def by_prob_increase(of: Contenders) -> Ranking:
    """How much each subvalue raises the target's probability; of targets by themselves."""

    def candidates(trace: Trace) -> Candidates:
        if trace.measure != "log_prob":
            raise ValueError(NO_PROBABILITY)
        return replace(trace.candidates(of.unit), by_prob=True)

    @no_autocast_no_grad
    def scores(trace: Trace) -> Float[Tensor, " part"]:
        found = candidates(trace)
        group, _ = found.numbering.locate(torch.arange(len(found)))
        return found.score(_swept(found), group)

    def tops(traces: Sequence[Trace], k: int) -> list[list[str]]:
        share_readings(traces)
        return _tops(traces, [candidates(trace) for trace in traces], k)

    return Ranking(scores, TopsTogether(tops), only="log_prob", of=of)


@no_autocast_no_grad
def _swept(candidates: Candidates) -> Float[Tensor, " part"]:
    ranked = rank(candidates)
    scores = torch.zeros_like(ranked.increase)
    scores[candidates.numbering.starts[ranked.group] + ranked.index] = ranked.increase
    return scores


@no_autocast_no_grad
def _tops(traces: Sequence[Trace], many: Sequence[Candidates], k: int) -> list[list[str]]:
    found = [rank(many[0], top=k)] if len(many) == 1 else rank_together(many, k)
    return [
        [str(label) for label in trace.table(candidates, ranked)["label"]]
        for trace, candidates, ranked in zip(traces, many, found, strict=True)
    ]
