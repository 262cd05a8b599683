"""The subvalues that raise the target's log-probability most, over all sublayers: by a sweep, or exactly and sooner.

The search evaluates subvalues in descending order of an upper bound and stops once the k-th best increase found exceeds
every bound that is left: what comes out is the exact top k, ties included, and the `Certificate` says so.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_subvalues.decomposition.subvalues import Subvalues
from tl_subvalues.importance.bounds import site_bounds
from tl_subvalues.importance.increases import increases
from tl_subvalues.readout.readout import Readout

# Subvalues made at a time, a multiple of the readout's blocks: 1,280 vectors of 4,096 numbers are 20 MB.
BLOCK = 1280


@dataclass(frozen=True)
class Certificate:
    """How a ranking was found: all candidates evaluated ("sweep"), or as many as the bounds left open ("bound")."""

    method: str
    candidates: int
    evaluated: int
    kth_value: float | None  # nats; None without candidates
    last_bound: float | None  # best bound of those not evaluated, in nats; None if none is left
    reason: str | None = None  # why a sweep, where a search was asked for


@dataclass(frozen=True)
class Ranking:
    """Parts in order: part `index[i]` of group `group[i]` has the increase `increase[i]` (nats)."""

    group: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    increase: Float[Tensor, " n"]
    certificate: Certificate


@dataclass(frozen=True)
class Candidates:
    """All parts of all groups in one order: group by group. Group g's parts are added to residuals[g]."""

    readout: Readout
    token: int
    residuals: Float[Tensor, "group d_model"]
    log_p: tuple[Float[Tensor, "group _"], ...]  # the target's distributions at the residuals, one for each softmax
    mean: tuple[Float[Tensor, "group _"], ...]  # expected readout columns under log_p; () where no bound holds
    groups: Sequence[Subvalues]
    by_prob: bool = False  # whether they are ranked by probability increase instead of log-probability increase

    def measured(self, increase: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What is ranked by: within a group either increase grows with the other, so what bounds one bounds both."""
        if not self.by_prob:
            return increase
        base = self.base.cpu()[group]
        # expm1 keeps the digits of small increases; large bounds on top of a tiny probability would overflow it.
        small = base.exp() * torch.expm1(increase.clamp(max=20.0))
        return torch.where(increase < 20.0, small, (base + increase).exp() - base.exp())

    @cached_property
    def starts(self) -> Int[Tensor, " groups_and_end"]:
        """Number of the first part of each group, and of all parts."""
        return torch.tensor([0, *(len(group) for group in self.groups)]).cumsum(0)

    @property
    def base(self) -> Float[Tensor, " group"]:
        """The target's log-probability at each group's residual stream."""
        return self.readout.word_log_prob(self.log_p, self.token)

    def locate(self, number: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Group of each part, and its index there."""
        starts = self.starts
        group = torch.searchsorted(starts, number, right=True) - 1
        return group, number - starts[group]

    def evaluate(self, number: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Exact increases of the chosen parts; makes no more than the chosen vectors."""
        if not len(number):
            return torch.zeros(0, dtype=self.residuals.dtype)
        group, index = self.locate(number)
        order = torch.argsort(group, stable=True)
        device = self.residuals.device
        made = [
            self.groups[int(g)].vectors(index[order][group[order] == g].to(device)) for g in group.unique(sorted=True)
        ]
        scores = increases(
            self.readout, self.residuals, self.log_p, group[order].to(device), torch.cat(made), self.token
        ).cpu()
        return torch.empty_like(scores).index_copy_(0, order, scores)


def rank(candidates: Candidates, *, top: Any = None, largest: bool = True, show_progress: bool = False) -> Ranking:
    """The `top` parts with the highest (or lowest) log-probability increase; ties in order of computation.

    `top=None` evaluates all; so does a readout for which the bound does not hold (a logit soft cap).

    Raises:
        ValueError: if `top` is not a positive number.
    """
    top = require_top(top)
    if top is None or top >= int(candidates.starts[-1]):
        return sweep(candidates, top, largest, show_progress)
    if not candidates.readout.bounded:
        reason = "logits are not affine in the normed residual stream (a soft cap), so no bound holds"
        return sweep(candidates, top, largest, show_progress, reason)
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
) -> Ranking:
    """Every candidate evaluated, in blocks."""
    total = int(candidates.starts[-1])
    increase = candidates.residuals.new_zeros(total).cpu()
    with tqdm(total=total, disable=not show_progress, unit="subvalue") as bar:
        for number in torch.arange(total).split(BLOCK):
            increase[number] = candidates.evaluate(number)
            bar.update(len(number))
    return ranking_of(candidates, increase, largest, top, reason)


def ranking_of(
    candidates: Candidates,
    increase: Float[Tensor, " all"],
    largest: bool = True,
    top: int | None = None,
    reason: str | None = None,
) -> Ranking:
    """The ranking of candidates whose increases are all known."""
    return _ranking(candidates, torch.arange(len(increase)), increase, top, largest, "sweep", None, reason)


def search(candidates: Candidates, top: int, largest: bool, show_progress: bool) -> Ranking:
    """Candidates evaluated in the order of their bounds, until the k-th value found is beyond all bounds left."""
    sites = site_bounds(
        candidates.readout,
        candidates.residuals,
        candidates.log_p,
        candidates.mean,
        candidates.token,
        both_sides=not largest,
    )
    sign = 1.0 if largest else -1.0
    total, sign = int(candidates.starts[-1]), 1.0 if largest else -1.0
    promise = candidates.residuals.new_empty(total, device="cpu")
    for i, (site, parts) in enumerate(zip(sites, candidates.groups, strict=True)):
        bound = site.upper(parts) if largest else site.lower(parts)
        group = torch.full((len(bound),), i)
        promise[candidates.starts[i] : candidates.starts[i + 1]] = sign * candidates.measured(bound.cpu(), group)
    # Vectors are evaluated in blocks of so many, the last one padded: whole ones cost nothing more.
    block = candidates.readout.block_sizes[0]
    step = -(-top // block) * block
    found, order = promise.new_zeros(0), torch.zeros(0, dtype=torch.long)
    increase = found
    ahead = _by_promise(promise, 4 * step)  # a window of what comes next; the whole order would be twice the bounds
    with tqdm(total=total, disable=not show_progress, unit="subvalue") as bar:
        while True:
            order = torch.cat([order, ahead[:step]])
            new = candidates.evaluate(ahead[:step])
            increase = torch.cat([increase, new])
            found = torch.cat([found, sign * candidates.measured(new, candidates.locate(ahead[:step])[0])])
            ahead = ahead[step:]
            bar.update(len(order) - bar.n)
            if len(order) < total and not len(ahead):
                promise[order] = -torch.inf
                ahead = _by_promise(promise, min(total - len(order), 4 * len(order)))
            # Strictly above: a part that ties with the k-th must have been seen, for ties go by order of computation.
            if not len(ahead) or torch.topk(found, top).values[-1] > promise[ahead[0]]:
                break
            step = block * max(1, step // block // 2)
    left = float(sign * promise[ahead[0]]) if len(ahead) else None
    return _ranking(candidates, order, increase, top, largest, "bound", left, None)


def _by_promise(promise: Float[Tensor, " all"], n: int) -> Int[Tensor, " n"]:
    """The n parts that promise most, most promising first."""
    return torch.topk(promise, min(n, len(promise))).indices


def _ranking(
    candidates: Candidates,
    number: Int[Tensor, " evaluated"],
    increase: Float[Tensor, " evaluated"],
    top: int | None,
    largest: bool,
    method: str,
    last_bound: float | None,
    reason: str | None,
) -> Ranking:
    """The top of what was evaluated, ties in order of computation."""
    by_number = torch.argsort(number)
    number, increase = number[by_number], increase[by_number]
    measured = candidates.measured(increase, candidates.locate(number)[0])
    order = torch.sort(measured, descending=largest, stable=True).indices[:top]
    group, index = candidates.locate(number[order])
    best = increase[order]
    kth = float(measured[order[-1]]) if len(order) else None
    certificate = Certificate(method, int(candidates.starts[-1]), len(number), kth, last_bound, reason)
    return Ranking(group, index, best, certificate)
