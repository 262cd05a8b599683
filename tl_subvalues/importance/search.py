"""The subvalues that raise the target's log-probability most, over all sublayers: by a sweep, or exactly and sooner.

The search evaluates subvalues in descending order of an upper bound and stops once the k-th best increase found exceeds
every bound that is left: what comes out is the exact top k, ties included, and the `Certificate` says so.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.run import Total
from tl_subvalues.decomposition.together import inner_products_together, longest_together
from tl_subvalues.importance.bounds import site_bounds
from tl_subvalues.importance.candidates import Candidates, Certificate, Ranked
from tl_subvalues.labels import NAMES, Unit
from tl_subvalues.progress import bar, search_line, step

# Subvalues made at a time: 1,280 vectors of 4,096 numbers are 20 MB. With the one that rides along in an evaluation
# (`Reading.increases`) they fill whole blocks of the readout.
BLOCK = 1279
# Promises put in order at a time: torch.topk holds 16 bytes for each, 550 MB for all attention neurons of 2,000 tokens
# of SmolLM2-135M.
_SORTED = 1 << 20


def rank(candidates: Candidates, *, top: Any = None, largest: bool = True, show_progress: bool = False) -> Ranked:
    """The `top` parts with the highest (or lowest) log-probability increase; ties in order of computation.

    `top=None` evaluates all; so does a readout for which the bound does not hold (a logit soft cap).

    Raises:
        ValueError: if `top` is not a positive number.
    """
    top = require_top(top)
    if top is not None and is_searched(candidates, top):
        return search(candidates, top, largest, show_progress)
    asked = top is not None and top < len(candidates) and not candidates.reading.direct
    return sweep(candidates, top, largest, show_progress, candidates.reading.no_bound if asked else None)


def is_searched(candidates: Candidates, top: int | None) -> bool:
    """Whether the top is found by a search: of some only, by bounds that hold and cost less than evaluations."""
    fewer = top is not None and top < len(candidates)
    return fewer and not candidates.reading.direct and candidates.reading.no_bound is None


def require_top(top: Any) -> int | None:
    """How many rows are asked for, as an int; None is all.

    Raises:
        ValueError: if it is neither None nor a positive whole number.
    """
    top = operator.index(top) if hasattr(top, "__index__") and not isinstance(top, bool) else top
    if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
        raise ValueError(f"top is a positive number or None for all, got {top!r}.")
    return top


def sweep(
    candidates: Candidates, top: int | None, largest: bool, show_progress: bool, reason: str | None = None
) -> Ranked:
    """Every candidate evaluated, in blocks."""
    total = len(candidates)
    outputs = [site.output for site in candidates.parts.sites]
    totals = [Total.of(parts.inner_products(x)) for parts, x in zip(candidates.groups, outputs, strict=True)]
    candidates.parts.check_sums(outputs, totals)
    increase = candidates.reading.residuals.new_zeros(total).cpu()
    with bar(NAMES[candidates.parts.unit], total, "evaluated", show=show_progress) as shown:
        for number in torch.arange(total).split(BLOCK) if total else ():
            step(f"{NAMES[candidates.parts.unit]}: {int(number[0]):,} of {total:,} evaluated")
            increase[number] = candidates.evaluate(number)
            shown.update(len(number))
    return ranked_by(candidates, increase, largest, top, reason)


def ranked_by(
    candidates: Candidates,
    increase: Float[Tensor, " all"],
    largest: bool = True,
    top: int | None = None,
    reason: str | None = None,
) -> Ranked:
    """Candidates whose increases are all known, ranked."""
    method = "direct" if candidates.reading.direct else "sweep"
    return _ranked(candidates, torch.arange(len(increase)), increase, top, largest, method, None, reason)


def search(candidates: Candidates, top: int, largest: bool, show_progress: bool) -> Ranked:
    """Candidates evaluated in the order of their bounds, until the k-th value found is beyond all bounds left."""
    # Vectors are evaluated in blocks of so many, the last one padded: whole ones cost nothing more. One of each
    # evaluation is not a candidate (`Reading.increases`).
    block = candidates.reading.readout.block_sizes[0]
    first = -(-(top + 1) // block) * block - 1
    steps = Search(candidates, promises([candidates], largest)[0], top, largest, first, block)
    with search_line(NAMES[candidates.parts.unit], len(candidates), show=show_progress) as evaluated:
        while len(steps.next):
            steps.add(candidates.evaluate(steps.next))
            evaluated(len(steps.order))
    return steps.ranked()


class Search:
    """One search, step by step: what is `next` to be evaluated, in the order of what it promises, until none need be.

    Args:
        candidates: what is searched.
        promise: what the score of each is at most (where the lowest are wanted: minus the score).
        top: how many are wanted.
        largest: whether the highest are.
        first: how many are evaluated at first.
        block: later steps are of whole blocks of so many, less one.
    """

    def __init__(
        self, candidates: Candidates, promise: Float[Tensor, " all"], top: int, largest: bool, first: int, block: int
    ) -> None:
        self._candidates, self._promise, self._top, self._largest = candidates, promise, top, largest
        self._sign = 1.0 if largest else -1.0
        self._block, self._step = block, first
        self._found, self._increase = promise.new_zeros(0), promise.new_zeros(0)
        self.order = torch.zeros(0, dtype=torch.long)
        # A window of what comes next; the whole order would be twice the bounds.
        self._ahead = _by_promise(promise, 4 * first)
        self.next = self._ahead[:first]

    def add(self, increase: Float[Tensor, " n"]) -> None:
        """The increases of what was `next`."""
        new, self._ahead = self.next, self._ahead[len(self.next) :]
        self.order = torch.cat([self.order, new])
        self._increase = torch.cat([self._increase, increase])
        score = self._candidates.score(increase, self._candidates.numbering.locate(new)[0])
        self._found = torch.cat([self._found, self._sign * score])
        total = len(self._candidates)
        if len(self.order) < total and not len(self._ahead):
            self._promise[self.order] = -torch.inf
            self._ahead = _by_promise(self._promise, min(total - len(self.order), 4 * len(self.order)))
        self._step = self._block * max(1, self._step // self._block // 2) - 1
        # Strictly above: a part that ties with the k-th must have been seen, for ties go by order of computation.
        done = not len(self._ahead) or torch.topk(self._found, self._top).values[-1] > self._promise[self._ahead[0]]
        self.next = self._ahead[:0] if done else self._ahead[: self._step]

    def ranked(self) -> Ranked:
        """The top of what was evaluated, once nothing is next."""
        left = float(self._sign * self._promise[self._ahead[0]]) if len(self._ahead) else None
        top, largest = self._top, self._largest
        return _ranked(self._candidates, self.order, self._increase, top, largest, "bound", left, None)


def promises(many: Sequence[Candidates], largest: bool) -> list[Float[Tensor, " _"]]:
    """What every candidate's score is at most, in several runs of one model (not largest: minus what it is at least).

    Raises:
        ValueError: if the parts of a run no longer add up to what its sublayers added.
    """
    bounds = [site_bounds(one.reading, one.parts.numbers, both_sides=not largest) for one in many]
    found = [one.reading.residuals.new_empty(len(one)) for one in many]
    places_of = [whole.split([len(group) for group in one.groups]) for whole, one in zip(found, many, strict=True)]
    led: list[dict[int, Total]] = [{} for _ in many]
    same: dict[tuple[Unit, int], list[tuple[int, int]]] = {}
    for run, one in enumerate(many):
        for number, site in enumerate(one.parts.numbers):
            same.setdefault((one.parts.unit, site), []).append((run, number))
    for places in same.values():
        groups = [many[run].groups[number] for run, number in places]
        sites = [bounds[run][number] for run, number in places]
        products, lengths = inner_products_together(groups, [at.gradient for at in sites]), longest_together(groups)
        for (run, number), at, parts, product, length in zip(places, sites, groups, products, lengths, strict=True):
            one = many[run]
            led[run][number] = Total.of(product)
            here = (at.upper if largest else at.lower)(parts, product, length, places_of[run][number])
            if one.by_prob:
                here.copy_(one.score(here, torch.full((len(here),), number, device=here.device)))
            if not largest:
                here.neg_()
    for one, own, totals in zip(many, bounds, led, strict=True):
        one.parts.check_sums([at.gradient for at in own], [totals[number] for number in range(len(own))])
    return [one.cpu() for one in found]


def _by_promise(promise: Float[Tensor, " all"], n: int) -> Int[Tensor, " n"]:
    """The n parts that promise most, most promising first; of many, so many at a time."""
    n = min(n, len(promise))
    if len(promise) <= _SORTED:
        return torch.topk(promise, n).indices
    among = torch.cat(
        [
            start + torch.topk(block, min(n, len(block))).indices
            for start, block in zip(range(0, len(promise), _SORTED), promise.split(_SORTED), strict=True)
        ]
    )
    return among[torch.topk(promise[among], n).indices]


def _ranked(
    candidates: Candidates,
    number: Int[Tensor, " evaluated"],
    increase: Float[Tensor, " evaluated"],
    top: int | None,
    largest: bool,
    method: str,
    last_bound: float | None,
    reason: str | None,
) -> Ranked:
    """The top of what was evaluated, ties in order of computation."""
    by_number = torch.argsort(number)
    number, increase = number[by_number], increase[by_number]
    score = candidates.score(increase, candidates.numbering.locate(number)[0])
    order = torch.sort(score, descending=largest, stable=True).indices[:top]
    group, index = candidates.numbering.locate(number[order])
    best = increase[order]
    kth = float(score[order[-1]]) if len(order) else None
    certificate = Certificate(method, len(candidates), len(number), kth, last_bound, reason)
    return Ranked(group, index, best, certificate)
