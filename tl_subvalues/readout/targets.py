"""What is asked of a prediction: how probable some words are, by themselves or against others."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A word. Its measure is its log-probability, in nats."""

    ids: tuple[int, ...]

    @property
    def first(self) -> int:
        """The word that the target is called by."""
        return self.ids[0]

    def log_prob(self, log_probs: Float[Tensor, "*rest vocab"]) -> Float[Tensor, "*rest"]:
        """Log-probability from those of all words."""
        return log_probs[..., self.first]

    def rank(self, log_probs: Float[Tensor, "*rest vocab"]) -> Int[Tensor, "*rest"]:
        """How far up among all words it is; 1 is the top."""
        return 1 + (log_probs > self.log_prob(log_probs)[..., None]).sum(-1)
