"""A target read at the residual streams of many places: what it is there, and how much added vectors raise it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.numerics.distributions import Distributions, joined, side_by_side
from tl_subvalues.readout.measures import Classes, Mixture, Ratio, RatioSum, sum_of
from tl_subvalues.readout.readout import Readout
from tl_subvalues.readout.targets import Target


@dataclass(frozen=True, eq=False)
class Below:
    """What stands below a log-ratio's line, at the sites of all readings that were made together."""

    classes: Classes
    at: Distributions
    gain: Float[Tensor, " d_model"] | None

    @cached_property
    def mean_columns(self) -> Float[Tensor, "site width"]:
        """Expected readout column: a product with the whole vocabulary, where it is all of that."""
        return self.classes.mean_columns(self.at)

    @cached_property
    def mean_squares(self) -> Float[Tensor, " site"]:
        """E ‖γ ∘ u‖², with γ the final norm's gain."""
        return self.classes.mean_squares(self.at, self.gain)


@dataclass(frozen=True, eq=False)
class RatioAt:
    """One of a measure's log-ratios at every site of a reading: the distributions above its line and below."""

    ratio: Ratio
    over: Distributions
    below: Below
    first: int  # of this reading's sites, among those of `below`

    @property
    def sites(self) -> slice:
        """This reading's sites, among those of `below`."""
        return slice(self.first, self.first + len(self.over))

    @property
    def under(self) -> Distributions:
        """The distributions below the line."""
        return self.below.at.rows(self.sites)

    @property
    def value(self) -> Float[Tensor, " site"]:
        """The log-ratio, in nats, in float64."""
        return self.over.log_sum - self.under.log_sum

    @property
    def mean_columns(self) -> Float[Tensor, "site width"]:
        """Expected readout column below the line."""
        return self.below.mean_columns[self.sites]

    @property
    def mean_squares(self) -> Float[Tensor, " site"]:
        """E ‖γ ∘ u‖² below the line."""
        return self.below.mean_squares[self.sites]

    def logit_column(self) -> Float[Tensor, " d_model"]:
        """The mean column above the line at the last site, minus that below it where only a few classes are there."""
        softmax, ratio, last = self.ratio.softmax, self.ratio, slice(len(self.over) - 1, None)
        column = ratio.over.mean_columns(self.over.rows(last))
        if ratio.under.few:
            column = column - self.mean_columns[last]
        return softmax.pulled_back(column[0])


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
        return increases_together([(self, site, vectors)])[0]

    def with_known(
        self, site: Int[Tensor, " n"], vectors: Float[Tensor, "n d_model"]
    ) -> tuple[Int[Tensor, " _"], Float[Tensor, "_ d_model"]]:
        """Sites and vectors, and behind them what leads from the last site to the run's end."""
        if self.known is None:
            return site, vectors
        last = len(self.residuals) - 1
        ahead = (self.known.residual - self.residuals[last])[None].to(vectors)
        return torch.cat([site, site.new_full((1,), last)]), torch.cat([vectors, ahead])

    def checked(self, vectors: Float[Tensor, "n d_model"], increases: Float[Tensor, " n"]) -> Float[Tensor, " _"]:
        """The increases of vectors but the known one, which must lead to what the run had."""
        result = increases.to(vectors).masked_fill((vectors == 0).all(-1), 0.0)
        return self._checked(result, self.value[-1])

    def _with_known(self, residuals: Float[Tensor, "n d_model"]) -> Float[Tensor, "_ d_model"]:
        return residuals if self.known is None else torch.cat([residuals, self.known.residual[None].to(residuals)])

    def _checked(self, values: Float[Tensor, " n"], base: Tensor | float) -> Float[Tensor, " _"]:
        """Values without the known one, which must be what the run had."""
        if self.known is None:
            return values
        found = float(base + values[-1])
        # 1e-5 was seen in float32; in half precision nothing here is rounded to it, for the residual stream is given.
        if not abs(found - self.known.value) <= 1e-3 * max(1.0, abs(self.known.value)):
            raise ValueError(
                f"the readout now gives the run's last residual stream {found:.4g} nats, where the trace has "
                f"{self.known.value:.4g}: the final norm or the unembedding has changed since; trace the prompt again."
            )
        return values[:-1]


@dataclass(frozen=True)
class TargetAt:
    """What is to be read of one run: a target at these residual streams."""

    readout: Readout
    target: Target
    residuals: Float[Tensor, "site d_model"]
    known: Known | None = None


def read(
    readout: Readout, target: Target, residuals: Float[Tensor, "site d_model"], known: Known | None = None
) -> Reading:
    """A target at these residual streams, whose distributions are made here."""
    return read_together([TargetAt(readout, target, residuals, known)])[0]


def read_together(wanted: Sequence[TargetAt]) -> list[Reading]:
    """Readings of several runs of one model: their products with the vocabulary are made in one.

    Holds a number for every site and word, and nothing else of that size.
    """
    measures = [one.target.measure_in(one.readout.vocabulary) for one in wanted]
    normed = [one.readout.normed(one.residuals) for one in wanted]
    together: dict[int, list[tuple[int, Ratio]]] = {}
    made: dict[tuple[int, int], RatioAt] = {}
    for i, (one, measure) in enumerate(zip(wanted, measures, strict=True)):
        for ratio in measure.ratios:
            if not ratio.under.few:
                together.setdefault(ratio.number, []).append((i, ratio))
                continue
            logits = ratio.softmax.logits(normed[i])
            over, under = ratio.over.distributions(logits), ratio.under.distributions(logits)
            made[i, ratio.number] = RatioAt(ratio, over, Below(ratio.under, under, one.readout.gain), 0)
    for number, members in together.items():
        logits = members[0][1].softmax.logits(torch.cat([normed[i] for i, _ in members]))
        spans = list(_spans([len(normed[i]) for i, _ in members]))
        pairs = [
            (ratio.over.distributions(logits[at]), ratio.under.distributions(logits[at]))
            for (_, ratio), at in zip(members, spans, strict=True)
        ]
        below = Below(members[0][1].under, joined(logits, [under for _, under in pairs]), wanted[0].readout.gain)
        for (i, ratio), at, (over, _) in zip(members, spans, pairs, strict=True):
            made[i, number] = RatioAt(ratio, over, below, at.start)
    return [
        _reading(one, measure, normed[i], tuple(made[i, ratio.number] for ratio in measure.ratios))
        for i, (one, measure) in enumerate(zip(wanted, measures, strict=True))
    ]


def _reading(
    one: TargetAt, measure: RatioSum | Mixture, normed: Float[Tensor, "site d_model"], ratios: tuple[RatioAt, ...]
) -> Reading:
    value = sum_of([ratio.value for ratio in ratios]).to(normed) if ratios else measure.value(normed)
    return Reading(one.readout, one.target, one.residuals, measure, ratios, value, one.known)


def _spans(lengths: Sequence[int]) -> Iterator[slice]:
    """Where each of several stretches lies that stand one after the other."""
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def increases_together(
    added: Sequence[tuple[Reading, Int[Tensor, " _"], Float[Tensor, "_ d_model"]]],
) -> list[Float[Tensor, " _"]]:
    """`Reading.increases` of several readings made together, in one pass over the vocabulary.

    A vector's bits are its own: they are those of `increases` by itself.
    """
    full = [(reading, *reading.with_known(site, vectors)) for reading, site, vectors in added]
    totals: list[list[Tensor]] = [[] for _ in full]
    below: dict[int, list[tuple[int, RatioAt, Tensor]]] = {}
    for i, (reading, site, vectors) in enumerate(full):
        if not (reading.readout.affine and reading.ratios):
            normed = reading.readout.normed(reading.residuals[site].to(vectors) + vectors)
            totals[i].append(reading.measure.value(normed) - reading.value[site])
            continue
        lin = reading.readout.linear(vectors)
        for one in reading.ratios:
            # log E exp bs above the line, minus that below: no two large log-sum-exps are subtracted.
            totals[i].append(one.ratio.over.log_mean_exp(lin, one.over, site))
            below.setdefault(id(one.below), []).append((i, one, lin))
    for members in below.values():
        shared = members[0][1].below
        site = torch.cat([full[i][1] + ratio.first for i, ratio, _ in members])
        under = shared.classes.log_mean_exp(torch.cat([lin for _, _, lin in members]), shared.at, site)
        for (i, _, _), part in zip(members, under.split([len(lin) for _, _, lin in members]), strict=True):
            totals[i].append(-part)
    return [reading.checked(vectors, sum_of(total)) for (reading, _, vectors), total in zip(full, totals, strict=True)]


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
        at_rows = side_by_side([one.under.rows(slice(row, row + 1)) for one, row in mine.values()])
        under = softmax.log_mean_exp_of_multiples(lin, stacked[rows], at_rows, own)
        over = [_over_multiples(one, row, lin, multiples[i]) for i, (one, row) in mine.items()]
        total[rows] += torch.cat(over).to(total) - under
    return list(total.split([len(rows) for rows in multiples]))


def _over_multiples(
    one: RatioAt, row: int, lin: Float[Tensor, "n d_model"], multiples: Float[Tensor, "copies n"]
) -> Float[Tensor, "copies n"]:
    """log E exp bs above the line, for multiples of vectors, at one site."""
    scaled = (multiples[:, :, None] * lin).flatten(0, 1)
    site = torch.full((len(scaled),), row, device=lin.device)
    return one.ratio.over.log_mean_exp(scaled, one.over, site).view(multiples.shape)
