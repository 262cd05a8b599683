"""Bounds on every subvalue's log-probability increase, at one inner product each (Jensen, Hoeffding, Bennett).

With the scale frozen and p the distribution at x,

    Δ(v) = B(v) − K(v),   B(v) = ⟨v, g⟩ with g the gradient of log p(w | x),   K(v) = log E_p exp(bs(v) − E_p bs(v))

Jensen's inequality says K >= 0, so B is an upper bound. From above, with y = lin(v), R = ‖y‖ max_t ‖u_t − E_p u‖ and
σ² = ‖y‖² E_p ‖u_t − E_p u‖², Hoeffding's lemma says K <= R²/2 and Bennett's inequality K <= σ² (e^R − 1 − R) / R².

With the scale recomputed, s at x and s' at x + v, r = s / s': let L = ⟨·, g⟩ with g taken at the scale s. Then

    Δ(v) <= r L(x + v) − L(x),   and Δ(v) is at most R'²/2 below it, R' = |r − 1| ‖lin(x)‖ max_t ‖u_t − E_p u‖ + r R

A word's log-probability may be the sum of two log-softmaxes (an adaptive softmax): Δ, B and K are then sums over both,
and so are the bounds; y is taken in the space that each softmax's columns lie in.

Floating point is on top: each bound is widened by what rounding can do to it and to the exact evaluation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.subvalues import Subvalues
from tl_subvalues.numerics.softmax import Softmax
from tl_subvalues.readout.reading import Reading
from tl_subvalues.readout.readout import Readout


@dataclass(frozen=True)
class Spread:
    """How far one softmax's columns lie from their mean at one site."""

    softmax: Softmax
    radius: float  # max_t ‖u_t − E_p u‖
    variance: float  # E_p ‖u_t − E_p u‖²


@dataclass(frozen=True)
class SiteBounds:
    """What the bounds of one site need; made for all sites at once by `site_bounds`."""

    readout: Readout
    residual: Float[Tensor, " d_model"]
    scale: Tensor
    gradient: Float[Tensor, " d_model"]  # g, pulled back through the final norm
    rounding: float  # error that rounding may cause, in nats per unit of length of what is read
    spreads: tuple[Spread, ...] | None = None  # of each of the target's softmaxes; None unless lower bounds are wanted

    def upper(self, parts: Subvalues) -> Float[Tensor, " all"]:
        """An upper bound on the increase of every part."""
        jensen, _ = self._jensen(parts)
        return jensen + self._slack(parts)

    def lower(self, parts: Subvalues) -> Float[Tensor, " all"]:
        """A lower bound on the increase of every part."""
        assert self.spreads is not None
        bound, r_minus_1 = self._jensen(parts)
        for spread in self.spreads:
            bound = bound - self._gap(parts, spread, r_minus_1)
        return bound - self._slack(parts)

    def _gap(self, parts: Subvalues, spread: Spread, r_minus_1: Float[Tensor, " all"]) -> Float[Tensor, " all"]:
        """How far one softmax may leave an increase below Jensen's bound."""
        softmax = spread.softmax
        lengths = parts.norms(lambda v: softmax.inside(self.readout.linear(v, self.scale)))
        R = lengths * spread.radius
        if self.readout.frozen:
            # (e^R − 1 − R) / R² is near 1/2 for small R, where the quotient would lose its digits.
            growth = torch.where(R > 1e-2, (torch.expm1(R) - R) / R.clamp(min=1e-2).pow(2), 0.5 + R / 4)
            return torch.minimum(R.pow(2) / 2, lengths.pow(2) * spread.variance * growth)
        length_x = float(softmax.inside(self.readout.linear(self.residual, self.scale)).norm())
        R = r_minus_1.abs() * length_x * spread.radius + (1 + r_minus_1) * R
        return R.pow(2) / 2

    def _jensen(self, parts: Subvalues) -> tuple[Float[Tensor, " all"], Float[Tensor, " all"]]:
        """B for every part, and r − 1 (zero with the scale frozen)."""
        L_v = parts.inner_products(self.gradient)
        if self.readout.frozen:
            return L_v, torch.zeros_like(L_v)
        d_model = len(self.residual)
        centred = self.readout.centred(self.residual)
        growth = (2 * parts.inner_products(centred) + parts.norms(self.readout.centred).pow(2)) / d_model
        s = self.scale.reshape(())
        s_new = (s.pow(2) + growth).clamp(min=1e-30).sqrt()
        r_minus_1 = -growth / (s_new * (s + s_new))  # s / s' − 1 without subtracting nearly equal numbers
        return r_minus_1 * (self.residual @ self.gradient) + (1 + r_minus_1) * L_v, r_minus_1

    def _slack(self, parts: Subvalues) -> Float[Tensor, " all"]:
        # Recomputed increases are differences of two whole log-probs, so the error grows with x as well. In float32,
        # errors up to 4e-4 nats were seen there; in float64 no increase was above its bound.
        lengths = parts.longest()
        read = lengths if self.readout.frozen else lengths + self.residual.norm()
        return 1e-6 + self.rounding * read


def site_bounds(reading: Reading, sites: Sequence[int], *, both_sides: bool = False) -> list[SiteBounds]:
    """Bounds for some of a reading's sites; of `bounded` readouts only.

    `both_sides` also prepares the lower bounds, which takes one more product with the vocabulary.
    """
    chosen, readout = list(sites), reading.readout
    residuals = reading.residuals[chosen]
    scale = readout.scale_at(residuals)
    scale = scale.expand(len(residuals), 1) if scale.ndim else scale.expand(len(residuals)).unsqueeze(1)
    gradient, sizes = torch.zeros_like(residuals), residuals.new_zeros(len(residuals))
    spreads: list[list[Spread]] = [[] for _ in chosen]
    moments = zip(reading.log_under, reading.mean_columns, reading.mean_squares, strict=True)
    for ratio, (log_q, mean, squares) in zip(reading.measure.ratios, moments, strict=True):
        column, expected = ratio.softmax.column(ratio.over.index), mean[chosen]

        def pulled_back(covectors: Tensor, softmax: Softmax = ratio.softmax) -> Tensor:
            return readout.pulled_back(softmax.pulled_back(covectors), scale)

        gradient = gradient + pulled_back(column - expected)
        sizes = sizes + pulled_back(column.expand_as(expected)).norm(dim=-1) + squares[chosen].sqrt()
        if both_sides:
            widest, variance = ratio.softmax.column_spread(log_q[chosen], expected)
            for site, (r, v) in enumerate(zip(widest.tolist(), variance.tolist(), strict=True)):
                spreads[site].append(Spread(ratio.softmax, r, v))
    # Dot products of d numbers err by at most some eps sqrt(d) times the lengths multiplied: 0.2 of that was the most
    # seen in an evaluation, over the best 1,500 neurons of SmolLM2-135M and of Gemma 3 270M. Twice for the evaluation,
    # twice for the bound.
    rounding = 4 * torch.finfo(residuals.dtype).eps * math.sqrt(residuals.shape[1]) * sizes
    return [
        SiteBounds(
            readout=readout,
            residual=residuals[i],
            scale=scale[i],
            gradient=gradient[i],
            rounding=float(rounding[i]),
            spreads=tuple(spreads[i]) if both_sides else None,
        )
        for i in range(len(residuals))
    ]
