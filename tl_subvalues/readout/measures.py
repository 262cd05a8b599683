"""A target as a model's softmaxes see it: log-ratios of classes, each of one softmax.

    log p(w | x) = Σ_s [z_s(N(x))_w − log Σ_t exp z_s(N(x))_t]

with the sum over the softmaxes of the word: one in most models, over the unembedding's logits; in an adaptive softmax
the head's and, for rarer words, their band's. Any of several words, and words against others, are log-ratios of several
classes: log Σ_over exp z − log Σ_under exp z. Where logits are affine in x, adding v to it raises one by

    log E_over exp bs(v) − log E_under exp bs(v)

E_over and E_under the means under the distribution at x, restricted to the classes above and below the line. Where both
are a few classes, the normaliser cancels and no vocabulary is read. Words of several bands are no such sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.numerics.distributions import Distributions, distributions_of
from tl_subvalues.numerics.softmax import Softmax


@runtime_checkable
class Classes(Protocol):
    """Some classes of one softmax."""

    @property
    def softmax(self) -> Softmax:
        """The softmax."""
        ...

    @property
    def few(self) -> bool:
        """Whether they are read by their own columns, without the rest of the vocabulary."""
        ...

    def distributions(self, logits: Float[Tensor, "site classes"]) -> Distributions:
        """The distribution over them at every site, from the softmax's logits, which may be taken for it."""
        ...

    def log_mean_exp(
        self, lin: Float[Tensor, "n d_model"], q: Distributions, site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log E exp bs of vectors through the linear part of the norm, vector i under the distribution of site[i]."""
        ...

    def columns(self) -> Float[Tensor, "class width"]:
        """The readout column of each, where they are few."""
        ...

    def mean_columns(self, q: Distributions) -> Float[Tensor, "site width"]:
        """Their expected readout column at every site."""
        ...

    def mean_squares(self, q: Distributions, weights: Float[Tensor, " d_model"] | None) -> Float[Tensor, " site"]:
        """E ‖w ∘ u‖² over them, of their columns u in the residual stream's space."""
        ...

    def log_sum_exp(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """log Σ exp z over them, where the residual stream, through the norm, is `normed`."""
        ...

    def below(self, over: Float[Tensor, " n"], normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """`over` minus that."""
        ...


@dataclass(frozen=True)
class Some:
    """A few classes, read by their own columns, in float64."""

    softmax: Softmax
    ids: tuple[int, ...]

    @property
    def few(self) -> bool:
        """Yes, where the softmax shows its columns."""
        return self.softmax.has_columns

    def distributions(self, logits: Float[Tensor, "site classes"]) -> Distributions:
        """The distribution over them."""
        return distributions_of(logits[:, list(self.ids)].double())

    def log_mean_exp(
        self, lin: Float[Tensor, "n d_model"], q: Distributions, site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log E exp bs; of a single class, its bs-value."""
        bs = torch.stack([self.softmax.bs_value(lin, index) for index in self.ids], -1)
        return bs[:, 0] if len(self.ids) == 1 else (bs + q.log_p(site, slice(None))).logsumexp(-1)

    def columns(self) -> Float[Tensor, "class width"]:
        """The readout column of each."""
        return self.softmax.columns(self.ids)

    def mean_columns(self, q: Distributions) -> Float[Tensor, "site width"]:
        """The mean of their columns."""
        columns = self.columns()
        return q.p.to(columns) @ columns

    def mean_squares(self, q: Distributions, weights: Float[Tensor, " d_model"] | None) -> Float[Tensor, " site"]:
        """E ‖w ∘ u‖² over them."""
        columns = self.softmax.pulled_back(self.columns())
        columns = columns if weights is None else columns * weights
        return q.p.to(columns) @ columns.pow(2).sum(-1)

    def below(self, over: Float[Tensor, " n"], normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """`over` minus log Σ exp z over them."""
        return over - self.log_sum_exp(normed)

    def log_sum_exp(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """log Σ exp z over them, where the residual stream, through the norm, is `normed`."""
        return self.softmax.class_logits(normed, self.ids).logsumexp(-1)


@dataclass(frozen=True)
class AllBut:
    """All classes but a few, or all."""

    softmax: Softmax
    without: tuple[int, ...] = ()

    @property
    def few(self) -> bool:
        """No."""
        return False

    def distributions(self, logits: Float[Tensor, "site classes"]) -> Distributions:
        """The softmax's own distribution, nothing at the classes that are left out; takes the logits' memory."""
        return distributions_of(logits, self.without)

    def log_mean_exp(
        self, lin: Float[Tensor, "n d_model"], q: Distributions, site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log Σ_t q_t exp bs_t, the classes read in blocks; never vectors × classes."""
        return self.softmax.log_mean_exp(lin, q, site)

    def columns(self) -> Float[Tensor, "class width"]:
        """Not one by one: they are the vocabulary.

        Raises:
            TypeError: always.
        """
        raise TypeError("all classes but a few are read together, not column by column")

    def mean_columns(self, q: Distributions) -> Float[Tensor, "site width"]:
        """One product with the whole softmax."""
        return self.softmax.mean_columns(q.p)

    def below(self, over: Float[Tensor, " n"], normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """`over` minus log Σ exp z, the classes read in blocks."""
        share = self.softmax.log_share(normed, over, self.without)
        # A class's logit and the sum that it is part of are rounded apart; with logits of some 1,000, by 6e-5.
        return share if self.without else share.clamp(max=0.0)

    def log_sum_exp(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """log Σ exp z over them, where the residual stream, through the norm, is `normed`."""
        return -self.softmax.log_share(normed, torch.zeros_like(normed[:, 0]), self.without)

    def mean_squares(self, q: Distributions, weights: Float[Tensor, " d_model"] | None) -> Float[Tensor, " site"]:
        """E ‖w ∘ u‖² at every site."""
        return self.softmax.mean_squares(q.p, weights)


@dataclass(frozen=True)
class Ratio:
    """log Σ_over exp z − log Σ_under exp z, in one softmax, which is number `number` of the readout."""

    number: int
    over: Classes
    under: Classes

    @property
    def softmax(self) -> Softmax:
        """The softmax."""
        return self.over.softmax

    def value(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """The log-ratio where the residual stream, through the norm, is `normed`."""
        return self.under.below(self.over.log_sum_exp(normed), normed)


@dataclass(frozen=True)
class RatioSum:
    """A sum of log-ratios: any target in a plain softmax, and one within a piece of an adaptive softmax."""

    ratios: tuple[Ratio, ...]

    @property
    def direct(self) -> bool:
        """Whether it is read by a few columns alone."""
        return all(ratio.over.few and ratio.under.few for ratio in self.ratios)

    def value(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """The measure where the residual stream, through the norm, is `normed`, in nats."""
        return sum_of([ratio.value(normed) for ratio in self.ratios])


@dataclass(frozen=True)
class Mixture:
    """log Σ exp of some sums of log-ratios, minus the same of others: words of several bands of an adaptive softmax."""

    over: tuple[RatioSum, ...]
    under: tuple[RatioSum, ...] = ()
    direct = False
    ratios: tuple[Ratio, ...] = ()  # none that increases could be read from

    def value(self, normed: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """The measure where the residual stream, through the norm, is `normed`, in nats."""
        over = torch.stack([one.value(normed) for one in self.over]).logsumexp(0)
        if not self.under:
            return over
        return over - torch.stack([one.value(normed) for one in self.under]).logsumexp(0)


@dataclass(frozen=True)
class Vocabulary:
    """Words as classes of a readout's softmaxes: one, or a head and bands of rarer words."""

    softmaxes: tuple[Softmax, ...]

    def place_of(self, token: int) -> tuple[int, int]:
        """Which softmax a word is a class of, and which class; a band's own share is a class of the head."""
        head, *bands = self.softmaxes
        first = head.n_classes - len(bands)
        if token < first:
            return 0, token
        for number, band in enumerate(bands, start=1):
            if token < first + band.n_classes:
                return number, token - first
            first += band.n_classes
        raise IndexError(token)

    def log_prob(self, ids: Sequence[int]) -> RatioSum | Mixture:
        """The measure log p of any of some words."""
        shares = self._shares(self._pieces(ids))
        return shares[0] if len(shares) == 1 else Mixture(shares)

    def log_prob_diff(self, ids: Sequence[int], against: Sequence[int]) -> RatioSum | Mixture:
        """The measure log p of any of some words minus that of any of others; within one softmax, its sum cancels."""
        over, under = self._pieces(ids), self._pieces(against)
        if len(over) == 1 and over.keys() == under.keys():
            (number,) = over
            softmax = self.softmaxes[number]
            return RatioSum((Ratio(number, Some(softmax, over[number]), Some(softmax, under[number])),))
        return Mixture(self._shares(over), self._shares(under))

    def log_odds(self, ids: Sequence[int]) -> RatioSum | Mixture:
        """The measure log p of any of some words minus that of all others."""
        over, (head, *bands) = self._pieces(ids), self.softmaxes
        if not bands:
            return RatioSum((Ratio(0, Some(head, over[0]), AllBut(head, over[0])),))
        # The others: of the head, all but these words and the bands that hold some; of each such band, all but these.
        split = [number for number in over if number]
        gone = {0: (*over.get(0, ()), *(self._band_class(number) for number in split)), **{n: over[n] for n in split}}
        others = {number: AllBut(self.softmaxes[number], ids) for number, ids in gone.items()}
        left = [number for number, ids in gone.items() if len(ids) < self.softmaxes[number].n_classes]
        return Mixture(self._shares(over), tuple(self._share(number, others[number]) for number in left))

    def _pieces(self, ids: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Words by the softmax that they are classes of."""
        found: dict[int, tuple[int, ...]] = {}
        for number, index in map(self.place_of, ids):
            found[number] = (*found.get(number, ()), index)
        return found

    def _shares(self, pieces: dict[int, tuple[int, ...]]) -> tuple[RatioSum, ...]:
        """The log-probabilities of words, those of one softmax together."""
        return tuple(self._share(number, Some(self.softmaxes[number], own)) for number, own in pieces.items())

    def _share(self, number: int, classes: Some | AllBut) -> RatioSum:
        """The log-probability of classes of one softmax: in it and, for a band, the band's own in the head."""
        own = Ratio(number, classes, AllBut(classes.softmax))
        if number == 0:
            return RatioSum((own,))
        head = self.softmaxes[0]
        return RatioSum((Ratio(0, Some(head, (self._band_class(number),)), AllBut(head)), own))

    def _band_class(self, number: int) -> int:
        return self.softmaxes[0].n_classes - len(self.softmaxes) + number


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one or several tensors; one alone keeps its bits, signed zeros too."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first
