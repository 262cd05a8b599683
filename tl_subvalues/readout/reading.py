"""A target read at the residual streams of many places: what it is there, and how much added vectors raise it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.readout.measures import Measure, measure_of, sum_of
from tl_subvalues.readout.readout import Readout
from tl_subvalues.readout.targets import Target


@dataclass(frozen=True)
class Reading:
    """A target's measure at some residual streams; made by `read`."""

    readout: Readout
    target: Target
    residuals: Float[Tensor, "site d_model"]
    measure: Measure
    # The distributions at every site over the classes of each of the measure's log-ratios: above its line, and below.
    log_over: tuple[Float[Tensor, "site _"], ...]
    log_under: tuple[Float[Tensor, "site _"], ...]
    value: Float[Tensor, " site"]  # the measure, in nats

    @cached_property
    def mean_columns(self) -> tuple[Float[Tensor, "site _"], ...]:
        """Expected readout columns below each line at every site: one product with the whole vocabulary, made once."""
        return tuple(ratio.under.mean_columns(p) for ratio, p in zip(self.measure.ratios, self.log_under, strict=True))

    @cached_property
    def mean_squares(self) -> tuple[Float[Tensor, " site"], ...]:
        """E ‖N^T u‖² below each line at every site: how long the covectors are that rounding acts on."""
        ratios, gain = self.measure.ratios, self.readout.gain
        scale = self.readout.scale_at(self.residuals).reshape(-1)
        pairs = zip(ratios, self.log_under, strict=True)
        return tuple(ratio.under.mean_squares(p, gain) / scale.pow(2) for ratio, p in pairs)

    def at(self, residuals: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """The measure at other residual streams, in nats."""
        return self.measure.value(self.readout.normed(residuals))

    def increases(self, site: Int[Tensor, " n"], vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """By how much the measure grows, in nats, where vector i is added to residuals[site[i]].

        Never holds vectors × vocabulary. A zero vector scores exactly 0.
        """
        if self.readout.affine:
            result = self._growth(site, self.readout.linear(vectors))
        else:
            normed = self.readout.normed(self.residuals[site].to(vectors) + vectors)
            result = self.measure.value(normed) - self.value[site]
        return result.masked_fill((vectors == 0).all(-1), 0.0)

    def _growth(self, site: Int[Tensor, " n"], lin: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """The increases where logits are affine: no subtraction of two large log-sum-exps."""
        ratios = self.measure.ratios
        over = sum_of([r.over.log_mean_exp(lin, p, site) for r, p in zip(ratios, self.log_over, strict=True)])
        under = sum_of([r.under.log_mean_exp(lin, p, site) for r, p in zip(ratios, self.log_under, strict=True)])
        return over - under


def read(readout: Readout, target: Target, residuals: Float[Tensor, "site d_model"]) -> Reading:
    """A target at these residual streams, whose distributions are made here."""
    measure, normed = measure_of(readout.softmaxes, target), readout.normed(residuals)
    over, under = [], []
    for ratio in measure.ratios:
        logits = ratio.softmax.logits(normed)
        over.append(ratio.over.log_q(logits))
        under.append(ratio.under.log_q(logits))
    value = sum_of([ratio.value_of(p) for ratio, p in zip(measure.ratios, under, strict=True)])
    return Reading(readout, target, residuals, measure, tuple(over), tuple(under), value)


def increases_of_multiples(
    at: Sequence[tuple[Reading, int]], lin: Float[Tensor, "n d_model"], multiples: Sequence[Float[Tensor, "_ n"]]
) -> list[Float[Tensor, "_ n"]]:
    """Increases of multiples of the same vectors at sites of several readings, one product with the vocabulary for all.

    Args:
        at: for each reading of one model, which of its sites the vectors are added at.
        lin: vectors through the linear part of the final norm, its scale aside.
        multiples: for each reading, what the vectors are multiplied by; several rows are several sets of multiples.

    Returns:
        For each reading, increases in nats of its rows; NaN where a sum is not to be trusted. Affine readouts only.
    """
    stacked = torch.cat(list(multiples))
    owner = torch.tensor([i for i, rows in enumerate(multiples) for _ in range(len(rows))])
    over = torch.stack([sum_of([r.softmax.bs_value(lin, r.over.index) for r in one.measure.ratios]) for one, _ in at])
    total: Tensor | None = None
    for number, softmax in enumerate(at[0][0].readout.softmaxes):
        mine = {
            i: log_q[site]
            for i, (one, site) in enumerate(at)
            for ratio, log_q in zip(one.measure.ratios, one.log_under, strict=True)
            if ratio.number == number
        }
        rows = torch.tensor([j for j, i in enumerate(owner.tolist()) if i in mine], dtype=torch.long)
        if not len(rows):
            continue
        order = {i: k for k, i in enumerate(mine)}
        own = torch.tensor([order[i] for i in owner[rows].tolist()])
        found = softmax.log_mean_exp_of_multiples(lin, stacked[rows], torch.stack(list(mine.values())), own)
        if len(rows) == len(owner) and total is None:
            total = found
        else:
            total = torch.zeros_like(stacked) if total is None else total
            total[rows] += found
    assert total is not None
    return list((over[owner] * stacked - total).split([len(rows) for rows in multiples]))
