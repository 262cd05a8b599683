"""A target read at the residual streams of many places: what it is there, and how much added vectors raise it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.readout.measures import Mixture, Ratio, RatioSum, sum_of
from tl_subvalues.readout.readout import Readout
from tl_subvalues.readout.targets import Target


@dataclass(frozen=True)
class RatioAt:
    """One of a measure's log-ratios at every site: the distributions over its classes, above its line and below."""

    ratio: Ratio
    log_over: Float[Tensor, "site _"]
    log_under: Float[Tensor, "site _"]

    @cached_property
    def mean_columns(self) -> Float[Tensor, "site width"]:
        """Expected readout column below the line: a product with the whole vocabulary, where it is all of that."""
        return self.ratio.under.mean_columns(self.log_under)

    def logit_column(self) -> Float[Tensor, " d_model"]:
        """The mean column above the line at the last site, minus that below it where only a few classes are there."""
        softmax, ratio = self.ratio.softmax, self.ratio
        column = ratio.over.mean_columns(self.log_over[-1:])
        if ratio.under.few:
            column = column - ratio.under.mean_columns(self.log_under[-1:])
        return softmax.pulled_back(column[0])

    def mean_squares(self, weights: Float[Tensor, " d_model"] | None) -> Float[Tensor, " site"]:
        """E ‖w ∘ u‖² below the line."""
        return self.ratio.under.mean_squares(self.log_under, weights)

    def growth(self, site: Int[Tensor, " n"], lin: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """How much vectors through the linear part of the norm raise it where logits are affine.

        No two large log-sum-exps are subtracted.
        """
        over = self.ratio.over.log_mean_exp(lin, self.log_over, site)
        return over - self.ratio.under.log_mean_exp(lin, self.log_under, site)


@dataclass(frozen=True)
class Known:
    """A residual stream and the measure that the run itself has there, for the readout to be held against."""

    residual: Float[Tensor, " d_model"]
    value: float  # nats


@dataclass(frozen=True)
class Reading:
    """A target's measure at some residual streams; made by `read`."""

    readout: Readout
    target: Target
    residuals: Float[Tensor, "site d_model"]
    measure: RatioSum | Mixture
    ratios: tuple[RatioAt, ...]  # none where the measure is no sum of log-ratios
    value: Float[Tensor, " site"]  # the measure, in nats
    known: Known | None = None

    @property
    def direct(self) -> bool:
        """Whether increases need a few readout columns only, so that all are as cheap as their bounds would be."""
        return self.measure.direct

    @property
    def whole(self) -> bool:
        """Whether increases are sums over whole softmaxes, whose products several prompts can share."""
        return self.readout.affine and bool(self.ratios) and not any(one.ratio.under.few for one in self.ratios)

    @property
    def no_bound(self) -> str | None:
        """Why no bound on increases holds; None where one does."""
        if not self.readout.bounded:
            return "logits are not affine in the normed residual stream (a soft cap), so no bound holds"
        if not self.ratios:
            return "the words are in several bands of an adaptive softmax, so no bound holds"
        return None

    def logit_column(self) -> Float[Tensor, " d_model"]:
        """What a vector through the norm is multiplied with for what it adds to the measure's logits.

        The words' column, of several their mean under the distribution at the last site; against words, minus theirs.

        Raises:
            ValueError: for a measure that is no sum of log-ratios.
        """
        if not self.ratios:
            raise ValueError("these words are in several bands of an adaptive softmax, where they have no one logit.")
        return sum_of([one.logit_column() for one in self.ratios])

    def at(self, residuals: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """The measure at other residual streams, in nats."""
        return self._checked(self.measure.value(self.readout.normed(self._with_known(residuals))), 0.0)

    def increases(self, site: Int[Tensor, " n"], vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """By how much the measure grows, in nats, where vector i is added to residuals[site[i]].

        Never holds vectors × vocabulary. A zero vector scores exactly 0. One more vector rides along whose increase is
        known, from the last site to the run's end.

        Raises:
            ValueError: if that comes out otherwise, for the readout has changed since the run.
        """
        last = len(self.residuals) - 1
        if self.known is not None:
            vectors = torch.cat([vectors, (self.known.residual - self.residuals[last])[None].to(vectors)])
            site = torch.cat([site, site.new_full((1,), last)])
        if self.readout.affine and self.ratios:
            lin = self.readout.linear(vectors)
            result = sum_of([ratio.growth(site, lin) for ratio in self.ratios])
        else:
            normed = self.readout.normed(self.residuals[site].to(vectors) + vectors)
            result = self.measure.value(normed) - self.value[site]
        result = result.to(vectors).masked_fill((vectors == 0).all(-1), 0.0)
        return self._checked(result, float(self.value[last]))

    def _with_known(self, residuals: Float[Tensor, "n d_model"]) -> Float[Tensor, "_ d_model"]:
        return residuals if self.known is None else torch.cat([residuals, self.known.residual[None].to(residuals)])

    def _checked(self, values: Float[Tensor, " n"], base: float) -> Float[Tensor, " _"]:
        """Values without the known one, which must be what the run had."""
        if self.known is None:
            return values
        found = base + float(values[-1])
        # 1e-5 was seen in float32; in half precision nothing here is rounded to it, for the residual stream is given.
        if not abs(found - self.known.value) <= 1e-3 * max(1.0, abs(self.known.value)):
            raise ValueError(
                f"the readout now gives the run's last residual stream {found:.4g} nats, where the trace has "
                f"{self.known.value:.4g}: the final norm or the unembedding has changed since; trace the prompt again."
            )
        return values[:-1]


def read(
    readout: Readout, target: Target, residuals: Float[Tensor, "site d_model"], known: Known | None = None
) -> Reading:
    """A target at these residual streams, whose distributions are made here."""
    measure, normed = target.measure_in(readout.vocabulary), readout.normed(residuals)
    if not measure.ratios:
        return Reading(readout, target, residuals, measure, (), measure.value(normed), known)
    ratios, values = [], []
    for ratio in measure.ratios:
        logits = ratio.softmax.logits(normed)
        ratios.append(RatioAt(ratio, ratio.over.log_q(logits), ratio.under.log_q(logits)))
        values.append(ratio.over.log_sum(logits) - ratio.under.log_sum(logits))
    return Reading(readout, target, residuals, measure, tuple(ratios), sum_of(values).to(normed), known)


def increases_of_multiples(
    at: Sequence[tuple[Reading, int]], lin: Float[Tensor, "n d_model"], multiples: Sequence[Float[Tensor, "_ n"]]
) -> list[Float[Tensor, "_ n"]]:
    """Increases of multiples of the same vectors at sites of several readings, one product with the vocabulary for all.

    Args:
        at: for each reading of one model, which of its sites the vectors are added at.
        lin: vectors through the linear part of the final norm, its scale aside.
        multiples: for each reading, what the vectors are multiplied by; several rows are several sets of multiples.

    Returns:
        For each reading, increases in nats of its rows; NaN where a sum is not to be trusted. Affine readouts, and
        measures that are sums of log-ratios over whole softmaxes, only.
    """
    stacked = torch.cat(list(multiples))
    owner = torch.tensor([i for i, rows in enumerate(multiples) for _ in range(len(rows))])
    total = torch.zeros_like(stacked)
    for number, softmax in enumerate(at[0][0].readout.softmaxes):
        mine = {
            i: (one, row) for i, (reading, row) in enumerate(at) for one in reading.ratios if one.ratio.number == number
        }
        rows = torch.tensor([j for j, i in enumerate(owner.tolist()) if i in mine], dtype=torch.long)
        if not len(rows):
            continue
        order = {i: k for k, i in enumerate(mine)}
        own = torch.tensor([order[i] for i in owner[rows].tolist()])
        log_p = torch.stack([one.log_under[row] for one, row in mine.values()])
        under = softmax.log_mean_exp_of_multiples(lin, stacked[rows], log_p, own)
        over = [_over_multiples(one, row, lin, multiples[i]) for i, (one, row) in mine.items()]
        total[rows] += torch.cat(over).to(total) - under
    return list(total.split([len(rows) for rows in multiples]))


def _over_multiples(
    one: RatioAt, row: int, lin: Float[Tensor, "n d_model"], multiples: Float[Tensor, "copies n"]
) -> Float[Tensor, "copies n"]:
    """log E exp bs above the line, for multiples of vectors, at one site."""
    scaled = (multiples[:, :, None] * lin).flatten(0, 1)
    site = torch.full((len(scaled),), row, device=lin.device)
    return one.ratio.over.log_mean_exp(scaled, one.log_over, site).view(multiples.shape)
