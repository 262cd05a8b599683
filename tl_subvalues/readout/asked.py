"""From what users ask for to a target: words as text or ids, one or several, against others, or none at all."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from tl_subvalues.model_view import ModelView, decode_each, spaced_ids, word_ids
from tl_subvalues.readout.targets import Contrast, Measure, Odds, Target

REST = "rest"


@dataclass(frozen=True)
class Asked:
    """A target as it was asked for; without words it is the model's most probable one, which only the run tells."""

    ids: tuple[int, ...] | None
    against: tuple[int, ...] | Literal["rest"] | None = None
    spaced: tuple[tuple[int, int], ...] = ()  # words of the target without a leading space, and the same with one

    @property
    def measure(self) -> Measure:
        """What the target will be measured by."""
        return "log_prob" if self.against is None else "log_prob_diff"

    def settled(self, view: ModelView, log_probs: Float[Tensor, " vocab"]) -> Target:
        """The target, given the run's log-probabilities of all words.

        Raises:
            ValueError: if the most probable word is one of those that it is to be measured against.
        """
        ids = (int(log_probs.argmax()),) if self.ids is None else self.ids
        if self.against is None:
            return Target(ids)
        if not isinstance(self.against, tuple):
            return Odds(ids)
        _require_apart(view, ids, self.against)
        return Contrast(ids, self.against)


def asked(view: ModelView, target: Any, against: Any = None) -> Asked:
    """A target and what it is measured against, checked as far as that needs no run.

    Args:
        view: the model.
        target: a word (text of one token, or its id), a list of words for any of them, or None for the model's most
            probable next token.
        against: None, a word, a list, or "rest", all other words.

    Raises:
        ValueError: for text of no or several tokens, an id outside the vocabulary, an empty list, a word that is there
            twice or on both sides, and for the rest of all words.
    """
    ids = None if target is None else word_ids(view, target, "target")
    spaced = spaced_ids(view, target)
    if against is None:
        return Asked(ids, None, spaced)
    if isinstance(against, str) and against == REST:
        if ids is not None and len(ids) >= view.readout.d_vocab:
            raise ValueError("the target is the whole vocabulary, so there is no rest to measure it against.")
        return Asked(ids, "rest", spaced)
    others = word_ids(view, against, "against")
    if ids is not None:
        _require_apart(view, ids, others)
    return Asked(ids, others, spaced)


def _require_apart(view: ModelView, ids: tuple[int, ...], against: tuple[int, ...]) -> None:
    both = next((token for token in ids if token in against), None)
    if both is not None:
        raise ValueError(
            f"{decode_each(view, [both])[0]!r} (token id {both}) is in the target and in what it is measured against; "
            "leave it out on one side."
        )


def words_in(cell: Any) -> Any:
    """What a cell asks for: the words of a JSON list that is not empty, and anything else as it is."""
    if not (isinstance(cell, str) and cell.startswith("[") and cell.endswith("]")):
        return cell
    try:
        words = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return words or cell
