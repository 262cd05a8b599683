"""Distributions over the classes of a softmax at many sites: what increases are means under."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# exp() of a smaller log-probability is 0 or loses digits in float32, and a large bs-value could still make the word
# count.
_SMALLEST_LOG_P = -85.0


@dataclass(frozen=True, eq=False)
class Distributions:
    """One distribution a site, made from logits by `distributions_of`; a class that is left out has probability 0."""

    p: Float[Tensor, "site classes"]
    log_sum: Float[Tensor, " site"]  # log Σ exp z of each, in float64: what it was divided by
    row: Int[Tensor, " site"]  # of `aside`; −1 where no class all but vanishes
    aside: Float[Tensor, "vanishing classes"]  # log p of the sites of which some class does

    def __len__(self) -> int:
        return len(self.p)

    def rows(self, sites: slice) -> "Distributions":
        """Those of some sites next to each other, as a view."""
        return Distributions(self.p[sites], self.log_sum[sites], self.row[sites], self.aside)

    def vanishes(self, site: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Whether some class all but vanishes from the distribution of each of these sites."""
        return self.row[site] >= 0

    def log_p(self, site: Int[Tensor, " n"], classes: slice) -> Float[Tensor, "n _"]:
        """Log-probabilities of some classes at the sites asked for."""
        found, row = self.p[site, classes].log(), self.row[site]
        kept = row >= 0
        if kept.any():
            found[kept] = self.aside[row[kept], classes]
        return found


def distributions_of(logits: Float[Tensor, "site classes"], without: Sequence[int] = ()) -> Distributions:
    """The softmax of each row, some classes left out; takes the logits' own memory, which holds them no longer.

    Sums are taken in float64: in float32, the probabilities of 262,144 words would add up to 1 ± 8e-5.
    """
    left_out = list(without)
    if left_out:
        logits[:, left_out] = torch.inf
    lowest = logits.amin(-1)
    if left_out:
        logits[:, left_out] = -torch.inf
    peak = logits.amax(-1)
    doubtful = torch.nonzero(lowest - peak < _SMALLEST_LOG_P + math.log(logits.shape[1])).flatten()
    shifted = logits.sub_(peak[:, None])
    aside = shifted[doubtful]
    p = shifted.exp_()
    total = p.sum(-1, dtype=torch.float64)
    p.mul_(total.reciprocal().to(p)[:, None])
    log_total = total.log()
    row = torch.full_like(peak, -1, dtype=torch.long)
    if len(doubtful):
        aside = (aside.double() - log_total[doubtful, None]).to(p)
        vanishing = torch.nonzero(((aside < _SMALLEST_LOG_P) & (aside > -torch.inf)).any(-1)).flatten()
        row[doubtful[vanishing]] = torch.arange(len(vanishing), device=row.device)
        aside = aside[vanishing]
    return Distributions(p, log_total + peak.double(), row, aside)


def joined(p: Float[Tensor, "site classes"], parts: Sequence[Distributions]) -> Distributions:
    """Distributions whose probabilities stand one after the other in `p` already, as those of one list of sites."""
    row, aside = [], 0
    for part in parts:
        row.append(torch.where(part.row >= 0, part.row + aside, part.row))
        aside += len(part.aside)
    return Distributions(
        p, torch.cat([part.log_sum for part in parts]), torch.cat(row), torch.cat([part.aside for part in parts])
    )


def side_by_side(parts: Sequence[Distributions]) -> Distributions:
    """Distributions over the same classes, from several places, as those of one list of sites; copies them."""
    return joined(torch.cat([part.p for part in parts]), parts)
