"""What a ranking is: scores of a trace's parts, the labels of the highest, and what there is to rank."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.subvalues import NeuronSubvalues
from tl_subvalues.errors import SubvaluesWarning, UnsupportedModelError
from tl_subvalues.labels import NAMES, labels_of
from tl_subvalues.numerics.numbering import Numbering
from tl_subvalues.readout.targets import Measure
from tl_subvalues.tracing.trace import Trace

Scores = Callable[[Trace], Tensor]
RankedUnit = Literal["ffn_neuron", "attn_neuron", "head"]

NO_PROBABILITY = (
    "rankings by probability increase are for targets by themselves: what is measured against others is a difference, "
    "which has no probability; leave them out, or rank by log_prob_increase, which is then the difference's."
)


@dataclass(frozen=True)
class PartsOf:
    """Heads, or attention neurons at their source positions, wherever they add something, sublayer by sublayer."""

    unit: RankedUnit

    def count(self, trace: Trace) -> int:
        """How many there are."""
        return len(trace.candidates(self.unit))

    def labels(self, trace: Trace, numbers: Int[Tensor, " k"]) -> list[str]:
        """Labels of the chosen ones."""
        candidates = trace.candidates(self.unit)
        fields = candidates.parts.fields(*candidates.numbering.locate(numbers))
        return labels_of(self.unit, {name: values.tolist() for name, values in fields.items()})


@dataclass(frozen=True)
class FfnNeurons:
    """FFN neurons, layer after layer, at every position."""

    unit: RankedUnit = "ffn_neuron"

    def count(self, trace: Trace) -> int:
        """How many there are."""
        return sum(len(parts) for _, parts in ffn_parts(trace))

    def labels(self, trace: Trace, numbers: Int[Tensor, " k"]) -> list[str]:
        """Labels of the chosen ones."""
        parts = ffn_parts(trace)
        layers = torch.tensor([layer for layer, _ in parts])
        group, neuron = Numbering(len(own) for _, own in parts).locate(numbers)
        return labels_of(self.unit, {"layer": layers[group].tolist(), "neuron": neuron.tolist()})


@dataclass(frozen=True)
class FfnNeuronsAtPositions:
    """FFN neurons each at one position up to the trace's: all of the first position, then all of the second, …."""

    unit: RankedUnit = "ffn_neuron"

    def count(self, trace: Trace) -> int:
        """How many there are."""
        return (trace.position + 1) * FFN_NEURONS.count(trace)

    def labels(self, trace: Trace, numbers: Int[Tensor, " k"]) -> list[str]:
        """Labels of the chosen ones."""
        each = FFN_NEURONS.count(trace)
        neurons = FFN_NEURONS.labels(trace, numbers % each)
        return [f"{label}@{at}" for label, at in zip(neurons, (numbers // each).tolist(), strict=True)]


# What a ranking ranks: the parts of a trace in one order, in which the scores come.
Contenders = PartsOf | FfnNeurons | FfnNeuronsAtPositions
FFN_NEURONS = FfnNeurons()
FFN_NEURONS_AT_POSITIONS = FfnNeuronsAtPositions()
ATTN_NEURONS = PartsOf("attn_neuron")
HEADS = PartsOf("head")


@dataclass(frozen=True)
class ScoresTogether:
    """Scores that are made of several traces of one model at once."""

    many: Callable[[Sequence[Trace]], list[Tensor]]

    def __call__(self, trace: Trace) -> Tensor:
        """Of one trace."""
        return self.many([trace])[0]


@dataclass(frozen=True)
class TopsTogether:
    """A shortcut through several traces of one model at once."""

    many: Callable[[Sequence[Trace], int], list[list[str]]]

    def __call__(self, trace: Trace, k: int) -> list[str]:
        """Through one trace."""
        return self.many([trace], k)[0]


@dataclass(frozen=True)
class Ranking:
    """A ranking of parts: call it with a trace for all scores, or ask for the top."""

    scores: Scores
    shortcut: Callable[[Trace, int], list[str]] | None = None
    only: Measure | None = None  # the measure of the only targets that it ranks for; None is any
    of: Contenders = FFN_NEURONS

    def __call__(self, trace: Trace) -> Tensor:
        """Scores of all contenders, in their order."""
        return self.scores(trace)

    def top(self, trace: Trace, k: int) -> list[str]:
        """Labels of the k contenders with the highest scores, highest first; ties in order of computation.

        Raises:
            ValueError: if the scores are not one number for each contender.
        """
        if self.shortcut is not None:
            return self.shortcut(trace, k)
        return highest(self.of, trace, self.scores(trace), k)

    def tops(self, traces: Sequence[Trace], k: int) -> list[list[str]]:
        """`top` of each of several traces of one model, to rounding: near ties may be told apart otherwise."""
        if isinstance(self.shortcut, TopsTogether):
            return self.shortcut.many(traces, k)
        if self.shortcut is None and isinstance(self.scores, ScoresTogether):
            made = self.scores.many(traces)
            return [highest(self.of, trace, scores, k) for trace, scores in zip(traces, made, strict=True)]
        return [self.top(trace, k) for trace in traces]


def highest(of: Contenders, trace: Trace, scores: Any, k: int) -> list[str]:
    """Labels of the k contenders with the highest scores.

    Raises:
        ValueError: if the scores are not one number for each contender.
    """
    total, names = of.count(trace), NAMES[of.unit]
    scores = torch.as_tensor(scores).detach().cpu()
    if scores.shape != (total,):
        raise ValueError(f"a ranking gives one score for each of {total} {names}, got {tuple(scores.shape)}.")
    if scores.isnan().any():
        raise ValueError(f"a ranking gave NaN for {int(scores.isnan().sum())} {names}; score every one.")
    return of.labels(trace, torch.sort(scores, descending=True, stable=True).indices[:k])


def warn_of_few(rankings: Mapping[str, Ranking], tops: Mapping[str, Sequence[str]], k: int) -> None:
    """Warn where fewer were ranked than are to be ablated: such rows are all alike."""
    few = {NAMES[rankings[name].of.unit]: len(top) for name, top in tops.items() if len(top) < k}
    for names, count in few.items():
        warnings.warn(
            f"k = {k} is more than the {count} {names} that there are to ablate: rows of such a k ablate all of them, "
            "whatever the ranking.",
            SubvaluesWarning,
            stacklevel=2,
        )


def at_random(seed: int, of: Contenders = FFN_NEURONS) -> Ranking:
    """Scores drawn at random: other ones for another seed, prompt or target, the same ones whenever they are drawn."""

    def random(trace: Trace) -> Float[Tensor, " part"]:
        one = len(trace.target_ids) == 1 and trace.against_ids is None
        words = trace.target_id if one else [trace.target_ids, trace.against_ids]
        what = f"{seed} {trace.tokens.tolist()} {words} {trace.position}"
        own = int.from_bytes(hashlib.sha256(what.encode()).digest()[:7], "big")
        return torch.rand(of.count(trace), generator=torch.Generator().manual_seed(own), dtype=torch.float64)

    return Ranking(random, of=of)


def ffn_parts(trace: Trace) -> list[tuple[int, NeuronSubvalues]]:
    """FFN neurons' subvalues at the trace's position, layer by layer.

    Raises:
        UnsupportedModelError: if a layer has no neurons of its own (a mixture of experts), naming it; if none has any.
    """
    listed = trace.candidates("ffn_neuron").parts
    if not listed.parts:
        raise UnsupportedModelError(
            f"{trace.run.view.name} has no FFN neurons to rank; its heads are in trace.heads()."
        )
    found: list[tuple[int, NeuronSubvalues]] = []
    for site, part in zip(listed.sites, listed.parts, strict=True):
        if not isinstance(part.subvalues, NeuronSubvalues):
            raise UnsupportedModelError(
                f"{trace.run.view.name}: layer {site.layer} is a mixture of experts, whose neurons the rankings do not "
                "compare; trace.ffn_neurons() has their increases, and trace.ablate() ablates them."
            )
        found.append((site.layer, part.subvalues))
    return found
