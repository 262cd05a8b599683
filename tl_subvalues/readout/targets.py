"""What is asked of a prediction: how probable some words are, by themselves, against others, or against the rest.

    measure "log_prob"        log p(S) = log Σ_{w in S} p(w)
    measure "log_prob_diff"   log p(S) − log p(R), R other words or, for the log-odds, all that are not in S

A target says what its measure is made of and what its results are called; nothing else in the package asks which kind
it is. Sets and contrasts go beyond the paper, whose target is one word; for two single words the contrast is
TransformerLens's logit difference.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.readout.measures import Mixture, RatioSum, Vocabulary

# Nats, from where on exp() of an increase is no longer needed to its last digits.
_LARGE = 20.0

Measure = Literal["log_prob", "log_prob_diff"]


@dataclass(frozen=True)
class Target:
    """Any of some words: how probable they are together."""

    ids: tuple[int, ...]
    measure: ClassVar[Measure] = "log_prob"

    @property
    def first(self) -> int:
        """The word that the target is called by."""
        return self.ids[0]

    @property
    def against_ids(self) -> list[int] | Literal["rest"] | None:
        """What it is measured against: words, all others, or nothing."""
        return None

    @property
    def column(self) -> str:
        """What tables call an increase of the measure."""
        return f"{self.measure}_increase"

    @property
    def shown(self) -> tuple["Target", ...]:
        """The targets whose measures are reported together."""
        return (self,)

    def measure_in(self, vocabulary: Vocabulary) -> RatioSum | Mixture:
        """What the measure is made of in a readout."""
        return vocabulary.log_prob(self.ids)

    def value(self, log_probs: Float[Tensor, "*rest vocab"]) -> Float[Tensor, "*rest"]:
        """The measure, in nats, from the log-probabilities of all words."""
        return log_probs[..., list(self.ids)].double().logsumexp(-1).to(log_probs)

    def rank(self, log_probs: Float[Tensor, "*rest vocab"]) -> Int[Tensor, "*rest"]:
        """How far up among all words its most probable word is; 1 is the top."""
        return 1 + (log_probs > log_probs[..., list(self.ids)].amax(-1, keepdim=True)).sum(-1)

    def report(self, value: Float[Tensor, "*rest"]) -> dict[str, Float[Tensor, "*rest"]]:
        """The measure by the names that tables have for it."""
        return {"log_prob": value, "prob": value.exp()}

    def increases(
        self, increase: Float[Tensor, "*rest"], base: Float[Tensor, "*#rest"]
    ) -> dict[str, Float[Tensor, "*rest"]]:
        """Columns for increases of the measure, each from its base."""
        return {self.column: increase, "prob_increase": prob_increase_of(increase, base)}


@dataclass(frozen=True)
class Contrast(Target):
    """Any of some words against any of others."""

    against: tuple[int, ...]
    measure: ClassVar[Measure] = "log_prob_diff"

    @property
    def against_ids(self) -> list[int] | Literal["rest"] | None:
        """The words that it is measured against."""
        return list(self.against)

    @property
    def shown(self) -> tuple[Target, ...]:
        """The words by themselves too."""
        return Target(self.ids), self

    def measure_in(self, vocabulary: Vocabulary) -> RatioSum | Mixture:
        """What the measure is made of in a readout."""
        return vocabulary.log_prob_diff(self.ids, self.against)

    def value(self, log_probs: Float[Tensor, "*rest vocab"]) -> Float[Tensor, "*rest"]:
        """log p(S) − log p(R), in nats."""
        against = log_probs[..., list(self.against)].double().logsumexp(-1)
        return (log_probs[..., list(self.ids)].double().logsumexp(-1) - against).to(log_probs)

    def report(self, value: Float[Tensor, "*rest"]) -> dict[str, Float[Tensor, "*rest"]]:
        """The measure by the name that tables have for it."""
        return {"log_prob_diff": value}

    def increases(
        self, increase: Float[Tensor, "*rest"], base: Float[Tensor, "*#rest"]
    ) -> dict[str, Float[Tensor, "*rest"]]:
        """One column: no probability belongs to a difference."""
        return {self.column: increase}


@dataclass(frozen=True)
class Odds(Contrast):
    """Any of some words against all others: the log-odds, which do not saturate where the words are near certain."""

    against: tuple[int, ...] = ()

    @property
    def against_ids(self) -> list[int] | Literal["rest"] | None:
        """All others."""
        return "rest"

    def measure_in(self, vocabulary: Vocabulary) -> RatioSum | Mixture:
        """What the measure is made of in a readout."""
        return vocabulary.log_odds(self.ids)

    def value(self, log_probs: Float[Tensor, "*rest vocab"]) -> Float[Tensor, "*rest"]:
        """log p(S) − log (1 − p(S)), in nats; the sum over the others is not taken from 1, which would lose it."""
        exact, others = log_probs.double(), torch.ones(log_probs.shape[-1], dtype=torch.bool)
        others[list(self.ids)] = False
        return (exact[..., list(self.ids)].logsumexp(-1) - exact[..., others].logsumexp(-1)).to(log_probs)


def prob_increase_of(increase: Float[Tensor, "*rest"], base: Float[Tensor, "*#rest"]) -> Float[Tensor, "*rest"]:
    """Probability increase from a log-probability increase and the log-probability that it starts from."""
    # expm1 keeps the digits of small increases; on top of a tiny probability, large ones would overflow it.
    small = base.exp() * torch.expm1(increase.clamp(max=_LARGE))
    return torch.where(increase < _LARGE, small, (base + increase).clamp(max=0.0).exp() - base.exp())
