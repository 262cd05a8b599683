"""Ways to rank FFN neurons by what they might mean to a prediction (the comparison of arXiv 2312.12141, section 4).

A ranking is a function from a trace to the score of every FFN neuron, layer after layer. A new one takes three lines:

    def negative_log_prob(trace):
        return -tlsv.RANKINGS["log_prob_increase"](trace)

    tlsv.evaluate(model, facts, rankings={**tlsv.RANKINGS, "mine": negative_log_prob})

Where the k highest can be found without scoring all, a ranking also has a shortcut.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.subvalues import NeuronSubvalues
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.importance.candidates import Candidates
from tl_subvalues.importance.search import rank
from tl_subvalues.labels import ffn_neuron_label
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.readout import Readout
from tl_subvalues.readout.targets import Measure
from tl_subvalues.tracing.trace import Trace

Scores = Callable[[Trace], Tensor]

_NO_PROBABILITY = (
    "the ranking prob_increase is for targets by themselves: what is measured against others is a difference, which "
    "has no probability; leave it out, or rank by log_prob_increase, which is then the difference's."
)


@dataclass(frozen=True)
class Ranking:
    """A ranking of FFN neurons: call it with a trace for all scores, or ask for the top."""

    scores: Scores
    shortcut: Callable[[Trace, int], list[str]] | None = None
    only: Measure | None = None  # the measure of the only targets that it ranks for; None is any

    def __call__(self, trace: Trace) -> Tensor:
        """Score of every FFN neuron, layer after layer."""
        return self.scores(trace)

    def top(self, trace: Trace, k: int) -> list[str]:
        """Labels of the k neurons with the highest scores, highest first; ties in order of computation.

        Raises:
            ValueError: if the scores are not one number for each FFN neuron.
        """
        if self.shortcut is not None:
            return self.shortcut(trace, k)
        sizes = [(layer, len(parts)) for layer, parts in ffn_parts(trace)]
        total = sum(size for _, size in sizes)
        scores = torch.as_tensor(self.scores(trace)).detach().cpu()
        if scores.shape != (total,):
            raise ValueError(f"a ranking gives one score for each of {total} FFN neurons, got {tuple(scores.shape)}.")
        if scores.isnan().any():
            raise ValueError(f"a ranking gave NaN for {int(scores.isnan().sum())} FFN neurons; score every one.")
        numbers = torch.sort(scores, descending=True, stable=True).indices[:k].tolist()
        labels = [ffn_neuron_label(layer, neuron) for layer, size in sizes for neuron in range(size)]
        return [labels[number] for number in numbers]


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


def log_prob_increase(trace: Trace) -> Float[Tensor, " neuron"]:
    """How much each neuron's subvalue raises the target's measure, in nats: log p, or the difference asked for."""
    return _swept(trace.candidates("ffn_neuron"))


@no_autocast_no_grad
def prob_increase(trace: Trace) -> Float[Tensor, " neuron"]:
    """How much each neuron's subvalue raises the target's probability."""
    candidates = _by_probability(trace)
    group, _ = candidates.numbering.locate(torch.arange(len(candidates)))
    return candidates.score(_swept(candidates), group)


def _by_probability(trace: Trace) -> Candidates:
    if trace.measure != "log_prob":
        raise ValueError(_NO_PROBABILITY)
    return replace(trace.candidates("ffn_neuron"), by_prob=True)


@no_autocast_no_grad
def _swept(candidates: Candidates) -> Float[Tensor, " neuron"]:
    ranked = rank(candidates)
    scores = torch.zeros_like(ranked.increase)
    scores[candidates.numbering.starts[ranked.group] + ranked.index] = ranked.increase
    return scores


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


def at_random(seed: int) -> Ranking:
    """Scores drawn at random: other ones for another seed, prompt or target, the same ones whenever they are drawn."""

    def random(trace: Trace) -> Float[Tensor, " neuron"]:
        one = len(trace.target_ids) == 1 and trace.against_ids is None
        words = trace.target_id if one else [trace.target_ids, trace.against_ids]
        what = f"{seed} {trace.tokens.tolist()} {words} {trace.position}"
        own = int.from_bytes(hashlib.sha256(what.encode()).digest()[:7], "big")
        total = sum(len(parts) for _, parts in ffn_parts(trace))
        return torch.rand(total, generator=torch.Generator().manual_seed(own), dtype=torch.float64)

    return Ranking(random)


def _top_by_log_probability(trace: Trace, k: int) -> list[str]:
    return [str(label) for label in trace.ffn_neurons(top=k)["label"]]


@no_autocast_no_grad
def _top_by_probability(trace: Trace, k: int) -> list[str]:
    candidates = _by_probability(trace)
    return [str(label) for label in trace.table(candidates, rank(candidates, top=k))["label"]]


RANKINGS: dict[str, Ranking] = {
    "log_prob_increase": Ranking(log_prob_increase, _top_by_log_probability),
    "prob_increase": Ranking(prob_increase, _top_by_probability, only="log_prob"),
    "coefficient": Ranking(coefficient),
    "norm": Ranking(norm),
    "coefficient_times_norm": Ranking(coefficient_times_norm),
    "direct_logit_attribution": Ranking(direct_logit_attribution),
    "gradient_times_activation": Ranking(gradient_times_activation),
    "random": at_random(0),
}


def chosen_rankings(
    rankings: Mapping[str, Scores] | Sequence[str] | None, seed: int, measure: Measure = "log_prob"
) -> dict[str, Ranking]:
    """The rankings to compare, by name; "random", drawn from `seed`, always among them.

    Args:
        rankings: names, functions by name, or None for all that rank for the measure.
        seed: of "random".
        measure: of the targets.

    Raises:
        ValueError: for a name that is not in `RANKINGS`, a ranking that is no function, or not for the measure.
    """
    if rankings is None:
        rankings = {name: one for name, one in RANKINGS.items() if one.only in (None, measure)}
    if isinstance(rankings, str):
        rankings = [rankings]
    if not isinstance(rankings, Mapping):
        unknown = [name for name in rankings if name not in RANKINGS]
        if unknown:
            raise ValueError(
                f"there is no ranking {unknown[0]!r}; there are {', '.join(RANKINGS)}, or pass a function."
            )
        rankings = {name: RANKINGS[name] for name in rankings}
    for name, scores in rankings.items():
        if not callable(scores):
            raise ValueError(f"ranking {name!r} is a function from a trace to scores, got {type(scores).__name__}.")
    known = {name: one if isinstance(one, Ranking) else Ranking(one) for name, one in rankings.items()}
    if any(one.only not in (None, measure) for one in known.values()):
        raise ValueError(_NO_PROBABILITY)
    return {**known, "random": at_random(seed)}
