"""Bounds on every subvalue's increase, at one inner product each (Jensen, Hoeffding, Bennett).

With the scale frozen and p the distribution at x, the log-probability of a word w grows by

    Δ(v) = B(v) − K(v),   B(v) = ⟨v, g⟩ with g the gradient of log p(w | x),   K(v) = log E_p exp(bs(v) − E_p bs(v))

Jensen's inequality says K >= 0, so B is an upper bound. From above, with y = lin(v), R = ‖y‖ max_t ‖u_t − E_p u‖ and
σ² = ‖y‖² E_p ‖u_t − E_p u‖², Hoeffding's lemma says K <= R²/2 and Bennett's inequality K <= σ² (e^R − 1 − R) / R².

With the scale recomputed, s at x and s' at x + v, r = s / s': let L = ⟨·, g⟩ with g taken at the scale s. Then

    Δ(v) <= r L(x + v) − L(x),   and Δ(v) is at most R'²/2 below it, R' = |r − 1| ‖lin(x)‖ max_t ‖u_t − E_p u‖ + r R

Of any of several words S, the first term is exact at one inner product a word, log E_{p_S} exp bs(v) in the place of
bs(v)_w, and the second is bounded as before; measured against the rest, p is the distribution over the rest.

A word's log-probability may be the sum of two log-ratios (an adaptive softmax): Δ, B and K are then sums over both,
and so are the bounds; y is taken in the space that each softmax's columns lie in.

Floating point is on top: each bound is widened by what rounding can do to it and to the exact evaluation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.subvalues import Subvalues
from tl_subvalues.numerics.softmax import Softmax
from tl_subvalues.readout.reading import RatioAt, Reading
from tl_subvalues.readout.readout import Readout

# The least that a bound is widened by, in nats.
_LEAST = 1e-6

# How far every part of a sublayer leads along a covector.
Along = Callable[[Float[Tensor, " d_model"]], Float[Tensor, " all"]]


@dataclass(frozen=True)
class Spread:
    """How far one softmax's columns lie from their mean at one site."""

    softmax: Softmax
    radius: float  # max_t ‖u_t − E_p u‖
    variance: float  # E_p ‖u_t − E_p u‖²


@dataclass(frozen=True)
class WordColumns:
    """Several words above a log-ratio's line: their columns, pulled back through the norm, and their distribution."""

    columns: Float[Tensor, "word d_model"]
    log_q: Float[Tensor, " word"]

    def log_mean_exp(self, along: Along) -> Float[Tensor, " all"]:
        """log E exp of how far every part leads along each word's column."""
        return torch.stack(
            [log_q + along(column).double() for log_q, column in zip(self.log_q, self.columns, strict=True)]
        ).logsumexp(0)


@dataclass(frozen=True)
class SiteBounds:
    """What the bounds of one site need; made for all sites at once by `site_bounds`."""

    readout: Readout
    residual: Float[Tensor, " d_model"]
    scale: Tensor
    gradient: Float[Tensor, " d_model"]  # g, pulled back through the norm; without what `words` hold
    words: tuple[WordColumns, ...]
    rounding: float  # error that rounding may cause, in nats per unit of length of what is read
    spreads: tuple[Spread, ...] | None = (
        None  # of each of the measure's log-ratios; None unless lower bounds are wanted
    )

    def upper(
        self,
        parts: Subvalues,
        products: Float[Tensor, " all"],
        lengths: Float[Tensor, " all"],
        out: Float[Tensor, " all"] | None = None,
    ) -> Float[Tensor, " all"]:
        """An upper bound on the increase of every part.

        Args:
            parts: the parts.
            products: their inner products with the gradient.
            lengths: at least their lengths.
            out: where it is put, if anywhere.
        """
        jensen, _ = self._jensen(parts, products)
        return torch.add(jensen, self._read(lengths), alpha=self.rounding, out=out).add_(_LEAST)

    def lower(
        self,
        parts: Subvalues,
        products: Float[Tensor, " all"],
        lengths: Float[Tensor, " all"],
        out: Float[Tensor, " all"] | None = None,
    ) -> Float[Tensor, " all"]:
        """A lower bound on the increase of every part; arguments as `upper`."""
        assert self.spreads is not None
        bound, r_minus_1 = self._jensen(parts, products)
        for spread in self.spreads:
            bound = bound - self._gap(parts, spread, r_minus_1)
        return torch.sub(bound, self._read(lengths), alpha=self.rounding, out=out).sub_(_LEAST)

    def _gap(self, parts: Subvalues, spread: Spread, r_minus_1: Float[Tensor, " all"] | None) -> Float[Tensor, " all"]:
        """How far one log-ratio may leave an increase below Jensen's bound."""
        softmax = spread.softmax
        lengths = parts.norms(lambda v: softmax.inside(self.readout.linear(v, self.scale)))
        R = lengths * spread.radius
        if r_minus_1 is None:
            # (e^R − 1 − R) / R² is near 1/2 for small R, where the quotient would lose its digits.
            growth = torch.where(R > 1e-2, (torch.expm1(R) - R) / R.clamp(min=1e-2).pow(2), 0.5 + R / 4)
            return torch.minimum(R.pow(2) / 2, lengths.pow(2) * spread.variance * growth)
        length_x = float(softmax.inside(self.readout.linear(self.residual, self.scale)).norm())
        R = r_minus_1.abs() * length_x * spread.radius + (1 + r_minus_1) * R
        return R.pow(2) / 2

    def _jensen(
        self, parts: Subvalues, products: Float[Tensor, " all"]
    ) -> tuple[Float[Tensor, " all"], Float[Tensor, " all"] | None]:
        """Jensen's bound for every part, and r − 1; None with the scale frozen."""
        r_minus_1 = None if self.readout.frozen else self._r_minus_1(parts)

        def moved(covector: Tensor, first_order: Tensor) -> Tensor:
            if r_minus_1 is None:
                return first_order
            return r_minus_1 * (self.residual @ covector) + (1 + r_minus_1) * first_order

        bound = moved(self.gradient, products)
        for words in self.words:
            bound = (bound + words.log_mean_exp(lambda u: moved(u, parts.inner_products(u)))).to(bound)
        return bound, r_minus_1

    def _r_minus_1(self, parts: Subvalues) -> Float[Tensor, " all"]:
        """s / s' − 1 for every part, without subtracting nearly equal numbers."""
        centred = self.readout.centred(self.residual)
        growth = 2 * parts.inner_products(centred) + parts.norms(self.readout.centred).pow(2)
        s = self.scale.reshape(())
        s_new = (s.pow(2) + growth / len(self.residual)).clamp(min=1e-30).sqrt()
        return -growth / len(self.residual) / (s_new * (s + s_new))

    def _read(self, lengths: Float[Tensor, " all"]) -> Float[Tensor, " all"]:
        """The lengths of what is read, which rounding errors grow with."""
        # Recomputed increases are differences of two whole log-probs, so the error grows with x as well. In float32,
        # errors up to 4e-4 nats were seen there; in float64 no increase was above its bound.
        return lengths if self.readout.frozen else lengths + self.residual.norm()


def site_bounds(reading: Reading, sites: Sequence[int], *, both_sides: bool = False) -> list[SiteBounds]:
    """Bounds for some of a reading's sites, where there are any (`reading.no_bound`).

    `both_sides` also prepares the lower bounds, which takes one more product with the vocabulary.
    """
    chosen, readout = list(sites), reading.readout
    residuals = reading.residuals[chosen]
    scale = readout.scale_at(residuals)
    scale = scale.expand(len(residuals), 1) if scale.ndim else scale.expand(len(residuals)).unsqueeze(1)
    gradient, sizes = torch.zeros_like(residuals), residuals.new_zeros(len(residuals))
    spreads: list[list[Spread]] = [[] for _ in chosen]
    words: list[list[WordColumns]] = [[] for _ in chosen]
    for one in reading.ratios:
        softmax, expected = one.ratio.softmax, one.mean_columns[chosen]

        def pulled_back(covectors: Tensor, softmax: Softmax = softmax) -> Tensor:
            return readout.pulled_back(softmax.pulled_back(covectors), scale)

        columns = one.ratio.over.columns()
        single = len(columns) == 1
        gradient = gradient + pulled_back((columns if single else 0.0) - expected)
        over = torch.stack([pulled_back(column.expand_as(expected)) for column in columns], 1)  # [site, word, d_model]
        if not single:
            log_over = one.over.log_p(torch.tensor(chosen, device=over.device), slice(None))
            for site, (own, log_q) in enumerate(zip(over, log_over, strict=True)):
                words[site].append(WordColumns(own, log_q))
        sizes = sizes + over.norm(dim=-1).amax(-1) + _length_below(one, scale, chosen)
        if both_sides:
            widest, variance = softmax.column_spread(one.under.p[chosen], expected)
            for site, (r, v) in enumerate(zip(widest.tolist(), variance.tolist(), strict=True)):
                spreads[site].append(Spread(softmax, r, v))
    # Dot products of d numbers err by at most some eps sqrt(d) times the lengths multiplied: 0.2 of that was the most
    # seen in an evaluation, over the best 1,500 neurons of SmolLM2-135M and of Gemma 3 270M. Twice for the evaluation,
    # twice for the bound.
    rounding = (4 * torch.finfo(residuals.dtype).eps * math.sqrt(residuals.shape[1]) * sizes).tolist()
    rows = zip(residuals.unbind(), scale.unbind(), gradient.unbind(), words, rounding, spreads, strict=True)
    return [
        SiteBounds(
            readout=readout,
            residual=x,
            scale=s,
            gradient=g,
            words=tuple(above),
            rounding=error,
            spreads=tuple(spread) if both_sides else None,
        )
        for x, s, g, above, error, spread in rows
    ]


def _length_below(one: RatioAt, scale: Tensor, chosen: list[int]) -> Float[Tensor, " site"]:
    """Root of E ‖N^T u‖² below a log-ratio's line: how long the covectors are that rounding acts on."""
    return one.mean_squares[chosen].sqrt() / scale[:, 0]
