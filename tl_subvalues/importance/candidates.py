"""Subvalues to be ranked, and what a ranking of them is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.run import UnitParts
from tl_subvalues.decomposition.subvalues import Subvalues
from tl_subvalues.numerics.numbering import Numbering
from tl_subvalues.readout.reading import Reading, increases_together
from tl_subvalues.readout.targets import prob_increase_of


@dataclass(frozen=True)
class Certificate:
    """How a ranking was found.

    All candidates were evaluated ("sweep"; "direct", where that takes a few readout columns and not the vocabulary), or
    as many as the bounds left open ("bound").
    """

    method: str
    candidates: int
    evaluated: int
    kth_value: float | None  # nats; None without candidates
    last_bound: float | None  # best bound of those not evaluated, in nats; None if none is left
    reason: str | None = None  # why a sweep, where a search was asked for


@dataclass(frozen=True)
class Ranked:
    """Parts in order: part `index[i]` of group `group[i]` has the increase `increase[i]` (nats)."""

    group: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    increase: Float[Tensor, " n"]
    certificate: Certificate


@dataclass(frozen=True)
class Candidates:
    """All parts of one unit in one order, sublayer by sublayer; `reading` has a row for every sublayer of the run."""

    reading: Reading
    parts: UnitParts
    by_prob: bool = False  # whether they are ranked by probability increase instead of log-probability increase

    @cached_property
    def numbering(self) -> Numbering:
        """Number of each part."""
        return Numbering(len(group) for group in self.groups)

    @property
    def groups(self) -> list[Subvalues]:
        """The parts of each sublayer."""
        return [parts.subvalues for parts in self.parts.parts]

    def __len__(self) -> int:
        return len(self.numbering)

    @property
    def base(self) -> Float[Tensor, " group"]:
        """The target's measure at the residual stream that each sublayer reads."""
        return self.reading.value[list(self.parts.numbers)]

    def score(self, increase: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What candidates are ranked by: their increase of log-probability or, with `by_prob`, of probability.

        Within a sublayer each grows with the other, so that a bound on one is a bound on both.
        """
        if not self.by_prob:
            return increase
        return prob_increase_of(increase, self.base.to(increase.device)[group])

    def evaluate(self, number: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Exact increases of the chosen parts; makes no more than the chosen vectors."""
        return evaluate_together([(self, number)])[0]

    def vectors(
        self, number: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, "n d_model"]]:
        """The chosen parts, sublayer by sublayer: which of `number` each is, the reading's site, and the vector."""
        device = self.reading.residuals.device
        group, index = self.numbering.locate(number)
        order = torch.argsort(group, stable=True)
        group, index = group[order], index[order].to(device)
        numbers, counts = group.unique_consecutive(return_counts=True)
        each = zip(numbers.tolist(), index.split(counts.tolist()), strict=True)
        made = [self.groups[g].vectors(own) for g, own in each]
        site = torch.tensor(self.parts.numbers)[group].to(device)
        return order, site, torch.cat(made) if made else self.reading.residuals[:0]


def evaluate_together(
    chosen: Sequence[tuple[Candidates, Int[Tensor, " _"]]],
) -> list[Float[Tensor, " _"]]:
    """Exact increases of chosen parts of several runs of one model: `Candidates.evaluate` of each, to the bit."""
    made = [candidates.vectors(number) for candidates, number in chosen]
    added = [
        (candidates.reading, site, vectors) for (candidates, _), (_, site, vectors) in zip(chosen, made, strict=True)
    ]
    results = []
    for (order, _, _), scores in zip(made, increases_together(added), strict=True):
        here = scores.cpu()
        results.append(torch.empty_like(here).index_copy_(0, order, here))
    return results
