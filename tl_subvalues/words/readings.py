"""Three ways to read a vector in words: what it raises most depends on what raising means.

    cosine          cos(N(v), u_t − ū), N the linear part of the final norm, ū the mean readout column: its direction
    bs_value        ⟨N(v), u_t⟩, the logit that it adds: words with long columns come first
    prob_increase   p(t | x + v) − p(t | x), x what its sublayer read in this run: what it does here

The first two read any vector; the third is of a run. In an adaptive softmax a cosine is with the column seen from its
band's mean, so that what shifts a whole band does not count; bs-values of two bands differ by such shifts, too.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.numerics.softmax import Softmax, log_softmax
from tl_subvalues.readout.readout import Readout
from tl_subvalues.readout.targets import prob_increase_of

By = Literal["cosine", "bs_value", "prob_increase"]
ByRow = Literal["cosine", "bs_value"]

# Vectors that are read at a time, some thousand words by some thousand: a product of 512 takes 5 to 15% less time a
# vector than one of 192.
_VECTORS, _ACCELERATOR_VECTORS = 512, 2048
# Values of all words at once, where a word's cannot be told without the others: 32 MB, and some five times that while
# they are made.
_NUMBERS = 1 << 23

Panels = Iterator[tuple[slice, Float[Tensor, "n _"]]]


@runtime_checkable
class WordReading(Protocol):
    """A value of every word for any vector, the higher the more the vector writes the word."""

    by: ClassVar[By]
    of_run: ClassVar[bool]  # whether it is of what a run adds, sign and coefficient included, or of any direction

    @property
    def at_once(self) -> int:
        """How many vectors to read at a time."""
        ...

    def panels(self, vectors: Float[Tensor, "n d_model"], site: Int[Tensor, " n"]) -> Panels:
        """Values of all words in order, some at a time: which words, and their values for every vector.

        `site` says which residual stream each vector is added to, where that matters.
        """
        ...


@runtime_checkable
class RowReading(WordReading, Protocol):
    """A reading of directions, which needs no run."""

    def of_words(self, vectors: Float[Tensor, "n d_model"], ids: list[int]) -> Float[Tensor, "n word"]:
        """Values of some words, by their own columns, for any number of vectors."""
        ...


class Cosine:
    """The angle between a vector and each word's column, seen from the mean of the columns."""

    by: ClassVar[By] = "cosine"
    of_run: ClassVar[bool] = False

    def __init__(self, readout: Readout) -> None:
        """UnsupportedModelError where words have no columns."""
        self._readout, self._angles = readout, readout.angles
        self.at_once = _vectors(readout)

    def panels(self, vectors: Float[Tensor, "n d_model"], site: Int[Tensor, " n"]) -> Panels:
        """Cosines with all words, of each band in its own."""
        lin, first = self._readout.linear(vectors), 0
        for angles in self._angles:
            yield from _shifted(angles.panels(lin), first)
            first += len(angles.lengths)

    def of_words(self, vectors: Float[Tensor, "n d_model"], ids: list[int]) -> Float[Tensor, "n word"]:
        """Cosines with some words."""
        lin, result = self._readout.linear(vectors), vectors.new_empty(len(vectors), len(ids))
        places = [self._readout.vocabulary.place_of(token) for token in ids]
        for number in {number for number, _ in places}:
            mine = [i for i, place in enumerate(places) if place[0] == number]
            result[:, mine] = self._angles[number].cosines_with(lin, [places[i][1] for i in mine]).to(result)
        return result


class BsValue:
    """The before-softmax value: what a vector adds to each word's logit."""

    by: ClassVar[By] = "bs_value"
    of_run: ClassVar[bool] = False

    def __init__(self, readout: Readout) -> None:
        self._readout = readout
        self.at_once = _vectors(readout)

    def panels(self, vectors: Float[Tensor, "n d_model"], site: Int[Tensor, " n"]) -> Panels:
        """Bs-values of all words; in an adaptive softmax a rarer word's includes its band's."""
        return self._readout.bs_panels(vectors)

    def of_words(self, vectors: Float[Tensor, "n d_model"], ids: list[int]) -> Float[Tensor, "n word"]:
        """Bs-values of some words."""
        return self._readout.linear(vectors) @ self._readout.columns(ids).T


class ProbIncrease:
    """What a vector does to each word's probability where it is added, scale as the readout has it."""

    by: ClassVar[By] = "prob_increase"
    of_run: ClassVar[bool] = True

    def __init__(self, readout: Readout, residuals: Float[Tensor, "site d_model"]) -> None:
        self._readout, self._residuals = readout, residuals
        self.at_once = max(1, min(_vectors(readout), _NUMBERS // readout.d_vocab))

    def panels(self, vectors: Float[Tensor, "n d_model"], site: Int[Tensor, " n"]) -> Panels:
        """Probability increases of all words together, those of small vectors to their last digits too."""
        result = vectors.new_empty(len(vectors), self._readout.d_vocab)
        for number in site.unique().tolist():
            mine = torch.nonzero(site == number).flatten()
            x = self._residuals[number]
            normed, moved = self._readout.normed(x), self._readout.moved(x, vectors[mine])
            log_p, grown = [], []
            for softmax in self._readout.softmaxes:
                log_p.append(log_softmax(softmax.logits(normed)))
                grown.append(_log_p_increases(softmax, normed, moved, log_p[-1]))
            base = self._readout.over_words(log_p)
            result[mine] = prob_increase_of(self._readout.over_words(grown), base).to(result)
        yield slice(0, self._readout.d_vocab), result


def _log_p_increases(
    softmax: Softmax,
    normed: Float[Tensor, " d_model"],
    moved: Float[Tensor, "n d_model"],
    log_p: Float[Tensor, " classes"],
) -> Float[Tensor, "n classes"]:
    """By how much the log-probability of every class grows: its logit's increase less that of log Σ exp."""
    added = softmax.logit_increases(normed, moved)
    # log1p Σ p (e^z − 1): small increases keep their digits.
    mean = (torch.expm1(added) * log_p.exp()).sum(-1, dtype=torch.float64)
    growth = mean.log1p()
    unsafe = ~(torch.isfinite(growth) & (mean > -0.5))
    if unsafe.any():
        growth[unsafe] = (added[unsafe] + log_p).double().logsumexp(-1)
    return added.sub_(growth.to(added)[:, None])


def row_reading(readout: Readout, by: str) -> RowReading:
    """A reading of rows without a run.

    Raises:
        ValueError: for "prob_increase", which is what a component does in a run, and for no reading's name.
        UnsupportedModelError: for cosines where words have no columns.
    """
    require_reading(by)
    if by == "prob_increase":
        raise ValueError(
            "by='prob_increase' is what a component does in a run, and rows are read without one; ask for 'cosine' or "
            "'bs_value', or trace a prompt and ask trace.writes(labels, by='prob_increase')."
        )
    return Cosine(readout) if by == "cosine" else BsValue(readout)


def run_reading(readout: Readout, by: str, residuals: Float[Tensor, "site d_model"]) -> WordReading:
    """A reading of what is added to these residual streams.

    Raises:
        ValueError: for no reading's name.
        UnsupportedModelError: for cosines where words have no columns.
    """
    require_reading(by)
    return ProbIncrease(readout, residuals) if by == "prob_increase" else row_reading(readout, by)


def require_reading(by: str) -> None:
    """Raise unless `by` names a reading.

    Raises:
        ValueError: naming those that there are.
    """
    if not isinstance(by, str) or by not in get_args(By):
        raise ValueError(f"by is 'cosine', 'bs_value' or 'prob_increase', got {by!r}.")


def _vectors(readout: Readout) -> int:
    return _VECTORS if readout.device.type == "cpu" else _ACCELERATOR_VECTORS


def _shifted(panels: Panels, first: int) -> Panels:
    """Panels of words that are counted from another one."""
    return ((slice(first + words.start, first + words.stop), values) for words, values in panels)
