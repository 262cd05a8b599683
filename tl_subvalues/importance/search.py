"""The subvalues that raise the target's log-probability most, over all sublayers: by a sweep, or exactly and sooner.

The search evaluates subvalues in descending order of an upper bound and stops once the k-th best increase found exceeds
every bound that is left: what comes out is the exact top k, ties included, and the `Certificate` says so.
"""

import operator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.importance.bounds import site_bounds
from tl_subvalues.importance.candidates import Candidates, Certificate, Ranked
from tl_subvalues.labels import NAMES
from tl_subvalues.progress import bar, search_line

# Subvalues made at a time: 1,280 vectors of 4,096 numbers are 20 MB. With the one that rides along in an evaluation
# (`Reading.increases`) they fill whole blocks of the readout.
BLOCK = 1279


def rank(candidates: Candidates, *, top: Any = None, largest: bool = True, show_progress: bool = False) -> Ranked:
    """The `top` parts with the highest (or lowest) log-probability increase; ties in order of computation.

    `top=None` evaluates all; so does a readout for which the bound does not hold (a logit soft cap).

    Raises:
        ValueError: if `top` is not a positive number.
    """
    top = require_top(top)
    if top is None or top >= len(candidates) or candidates.reading.direct:
        return sweep(candidates, top, largest, show_progress)
    if candidates.reading.no_bound:
        return sweep(candidates, top, largest, show_progress, candidates.reading.no_bound)
    return search(candidates, top, largest, show_progress)


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
    for i, (site, parts) in enumerate(zip(candidates.parts.sites, candidates.groups, strict=True)):
        candidates.parts.check_sum(i, site.output, parts.inner_products(site.output))
    increase = candidates.reading.residuals.new_zeros(total).cpu()
    with bar(NAMES[candidates.parts.unit], total, "evaluated", show=show_progress) as shown:
        for number in torch.arange(total).split(BLOCK):
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
    bounds = site_bounds(candidates.reading, candidates.parts.numbers, both_sides=not largest)
    total, sign = len(candidates), 1.0 if largest else -1.0
    promise = candidates.reading.residuals.new_empty(total, device="cpu")
    for i, (at, parts) in enumerate(zip(bounds, candidates.groups, strict=True)):
        products = parts.inner_products(at.gradient)
        candidates.parts.check_sum(i, at.gradient, products)
        bound = at.upper(parts, products) if largest else at.lower(parts, products)
        group = torch.full((len(bound),), i)
        promise[candidates.numbering.span(i)] = sign * candidates.score(bound.cpu(), group)
    # Vectors are evaluated in blocks of so many, the last one padded: whole ones cost nothing more. One of each
    # evaluation is not a candidate (`Reading.increases`).
    block = candidates.reading.readout.block_sizes[0]
    step = -(-(top + 1) // block) * block - 1
    found, order = promise.new_zeros(0), torch.zeros(0, dtype=torch.long)
    increase = found
    ahead = _by_promise(promise, 4 * step)  # a window of what comes next; the whole order would be twice the bounds
    with search_line(NAMES[candidates.parts.unit], total, show=show_progress) as evaluated:
        while True:
            order = torch.cat([order, ahead[:step]])
            new = candidates.evaluate(ahead[:step])
            increase = torch.cat([increase, new])
            found = torch.cat([found, sign * candidates.score(new, candidates.numbering.locate(ahead[:step])[0])])
            ahead = ahead[step:]
            evaluated(len(order))
            if len(order) < total and not len(ahead):
                promise[order] = -torch.inf
                ahead = _by_promise(promise, min(total - len(order), 4 * len(order)))
            # Strictly above: a part that ties with the k-th must have been seen, for ties go by order of computation.
            if not len(ahead) or torch.topk(found, top).values[-1] > promise[ahead[0]]:
                break
            step = block * max(1, step // block // 2) - 1
    left = float(sign * promise[ahead[0]]) if len(ahead) else None
    return _ranked(candidates, order, increase, top, largest, "bound", left, None)


def _by_promise(promise: Float[Tensor, " all"], n: int) -> Int[Tensor, " n"]:
    """The n parts that promise most, most promising first."""
    return torch.topk(promise, min(n, len(promise))).indices


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
