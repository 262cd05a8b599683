"""A target as a model's softmaxes see it: a sum of log-ratios of classes, each of one softmax.

    log p(w | x) = Σ_s [z_s(N(x))_w − log Σ_t exp z_s(N(x))_t]

with the sum over the softmaxes of the word: one in most models, over the unembedding's logits; in an adaptive softmax
the head's and, for rarer words, their band's. Where logits are affine in x, adding v to it raises a log-ratio by

    log E_over exp bs(v) − log E_under exp bs(v)

E_over and E_under the means under the distribution at x, restricted to the classes above and below the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.numerics.softmax import Softmax, log_softmax
from tl_subvalues.readout.targets import Target


@runtime_checkable
class Classes(Protocol):
    """Some classes of one softmax."""

    softmax: Softmax

    def log_q(self, logits: Float[Tensor, "site classes"]) -> Float[Tensor, "site _"]:
        """The distribution over them, from the softmax's logits."""
        ...

    def log_mean_exp(
        self, lin: Float[Tensor, "n d_model"], log_q: Float[Tensor, "site _"], site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log E exp bs of vectors through the linear part of the norm, vector i under log_q[site[i]]."""
        ...

    def mean_columns(self, log_q: Float[Tensor, "site _"]) -> Float[Tensor, "site width"]:
        """Their expected readout column at every site."""
        ...


@dataclass(frozen=True)
class One:
    """A single class."""

    softmax: Softmax
    index: int

    def log_q(self, logits: Float[Tensor, "site classes"]) -> Float[Tensor, "site 1"]:
        """It is certain."""
        return torch.zeros_like(logits[:, :1])

    def log_mean_exp(
        self, lin: Float[Tensor, "n d_model"], log_q: Float[Tensor, "site 1"], site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Its bs-value."""
        return self.softmax.bs_value(lin, self.index)

    def mean_columns(self, log_q: Float[Tensor, "site 1"]) -> Float[Tensor, "site width"]:
        """Its column."""
        return self.softmax.column(self.index).expand(len(log_q), -1)

    def log_sum_exp(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """Its logit."""
        return self.softmax.class_logits(normed, [self.index])[:, 0]


@dataclass(frozen=True)
class All:
    """All classes."""

    softmax: Softmax

    def log_q(self, logits: Float[Tensor, "site classes"]) -> Float[Tensor, "site classes"]:
        """The softmax's own distribution."""
        return log_softmax(logits)

    def log_mean_exp(
        self, lin: Float[Tensor, "n d_model"], log_q: Float[Tensor, "site classes"], site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log Σ_t p_t exp bs_t, the classes read in blocks; never vectors × classes."""
        return self.softmax.log_mean_exp(lin, log_q, site)

    def mean_columns(self, log_q: Float[Tensor, "site classes"]) -> Float[Tensor, "site width"]:
        """One product with the whole softmax."""
        return self.softmax.mean_columns(log_q)

    def mean_squares(
        self, log_q: Float[Tensor, "site classes"], weights: Float[Tensor, " d_model"] | None
    ) -> Float[Tensor, " site"]:
        """E ‖w ∘ u‖² at every site."""
        return self.softmax.mean_squares(log_q, weights)


@dataclass(frozen=True)
class Ratio:
    """log Σ_over exp z − log Σ_under exp z, in one softmax, which is number `number` of the readout."""

    number: int
    over: One
    under: All

    @property
    def softmax(self) -> Softmax:
        """The softmax."""
        return self.over.softmax

    def value(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """The log-ratio where the residual stream, through the norm, is `normed`; the classes read in blocks."""
        # A class's logit and the sum that it is part of are rounded apart; with logits of some 1,000, by 6e-5.
        return self.softmax.log_share(normed, self.over.log_sum_exp(normed)).clamp(max=0.0)

    def value_of(self, log_q: Float[Tensor, "site classes"]) -> Float[Tensor, " site"]:
        """The log-ratio from the distribution below the line."""
        return log_q[..., self.over.index]


@dataclass(frozen=True)
class Measure:
    """A sum of log-ratios."""

    ratios: tuple[Ratio, ...]

    def value(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """The measure where the residual stream, through the norm, is `normed`, in nats."""
        return sum_of([ratio.value(normed) for ratio in self.ratios])

    def column(self) -> Float[Tensor, " d_model"]:
        """What a vector through the norm is multiplied with for the target's bs-value."""
        return sum_of([r.softmax.pulled_back(r.softmax.column(r.over.index)) for r in self.ratios])


def measure_of(softmaxes: Sequence[Softmax], target: Target) -> Measure:
    """The measure of a target in a readout with these softmaxes."""
    number, index = place_of(softmaxes, target.first)
    head = softmaxes[0]
    if number == 0:
        return Measure((_share(0, head, index),))
    share = _share(0, head, head.n_classes - len(softmaxes) + number)
    return Measure((share, _share(number, softmaxes[number], index)))


def _share(number: int, softmax: Softmax, index: int) -> Ratio:
    return Ratio(number, One(softmax, index), All(softmax))


def place_of(softmaxes: Sequence[Softmax], token: int) -> tuple[int, int]:
    """Which softmax a word is a class of, and which class; a band's own share is a class of the head."""
    head, *bands = softmaxes
    first = head.n_classes - len(bands)
    if token < first:
        return 0, token
    for number, band in enumerate(bands, start=1):
        if token < first + band.n_classes:
            return number, token - first
        first += band.n_classes
    raise IndexError(token)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one or several tensors; one alone keeps its bits, signed zeros too."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first
