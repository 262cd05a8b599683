"""Subvalues to be ranked, and what a ranking of them is."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.run import UnitParts
from tl_subvalues.decomposition.subvalues import Subvalues
from tl_subvalues.numerics.numbering import Numbering
from tl_subvalues.readout.reading import Reading
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
        return prob_increase_of(increase, self.base.cpu()[group])

    def evaluate(self, number: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Exact increases of the chosen parts; makes no more than the chosen vectors."""
        residuals = self.reading.residuals
        if not len(number):
            return torch.zeros(0, dtype=residuals.dtype)
        group, index = self.numbering.locate(number)
        order = torch.argsort(group, stable=True)
        device = residuals.device
        made = [
            self.groups[int(g)].vectors(index[order][group[order] == g].to(device)) for g in group.unique(sorted=True)
        ]
        site = torch.tensor(self.parts.numbers)[group[order]].to(device)
        scores = self.reading.increases(site, torch.cat(made)).cpu()
        return torch.empty_like(scores).index_copy_(0, order, scores)
