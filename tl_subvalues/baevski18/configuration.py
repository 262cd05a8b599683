"""The shape of one of Baevski & Auli's language models (arXiv 1809.10853), in TransformerLens's words."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tl_subvalues.errors import shown, shown_value

# Beyond any model, and small enough for products of several to be computed.
_LARGEST = 2**40
_MOST_BANDS = 64


@dataclass(frozen=True)
class Band:
    """One piece of the vocabulary, word ids start to stop - 1, and the width of its word vectors."""

    start: int
    stop: int
    width: int

    @property
    def size(self) -> int:
        """Number of words."""
        return self.stop - self.start


@dataclass(frozen=True)
class Baevski18Config:
    """Sizes of a model; the defaults are those of `transformer_lm.wiki103.adaptive` (246,933,504 parameters).

    Attributes:
        cutoffs: where bands of the vocabulary end; if the last is below `d_vocab`, one more band goes on to there.
        factor: band b's word vectors have width floor(d_model / factor**b).
        tied_projections: whether the output reads a band through the transpose of its input projection (band 0 never
            does), or through a projection of its own.
        bos_token: what a text starts with: `</s>` unless the model was trained with `add_bos_token`.

    Raises:
        ValueError: if the sizes do not go together.
    """

    n_layers: int = 16
    n_heads: int = 8
    d_model: int = 1024
    d_mlp: int = 4096
    d_vocab: int = 267_744
    cutoffs: tuple[int, ...] = (20_000, 60_000)
    factor: float = 4.0
    n_ctx: int = 3072
    tied_projections: bool = True
    bos_token: str = "</s>"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutoffs", tuple(self.cutoffs))
        for name in ("n_layers", "n_heads", "d_model", "d_mlp", "d_vocab", "n_ctx"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a positive whole number, got {shown_value(value)}.")
            if value > _LARGEST:
                raise ValueError(f"{name} is {shown_value(value)}, which is no size of a model.")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}.")
        ends = [0, *self.cutoffs]
        if len(ends) < 2 or any(a >= b for a, b in pairwise(ends)) or ends[-1] > self.d_vocab:
            raise ValueError(
                f"cutoffs {shown_value(self.cutoffs)} are to rise from above 0 to at most d_vocab, {self.d_vocab}."
            )
        if len(ends) > _MOST_BANDS:
            raise ValueError(f"there are {len(ends) - 1} cutoffs, and can be {_MOST_BANDS - 1}.")
        if not self.factor >= 1:
            raise ValueError(f"factor is 1 or more, got {self.factor}.")
        if not self._all_have_a_width():
            raise ValueError(
                f"factor {self.factor} leaves a band of {len(ends) - 1} cutoffs without a width: "
                f"d_model is {self.d_model}."
            )
        if self.bos_token not in ("</s>", "<s>"):
            raise ValueError(f"bos_token is '</s>' or '<s>', got {shown_value(self.bos_token)}.")

    def _all_have_a_width(self) -> bool:
        try:
            return all(band.width >= 1 for band in self.bands)
        except OverflowError:  # a power of the factor beyond any number
            return False

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def bands(self) -> tuple[Band, ...]:
        """The vocabulary's bands, most frequent words first."""
        ends = [*self.cutoffs] if self.cutoffs[-1] == self.d_vocab else [*self.cutoffs, self.d_vocab]
        starts = [0, *ends[:-1]]
        return tuple(
            Band(start, stop, int(self.d_model // self.factor**b))
            for b, (start, stop) in enumerate(zip(starts, ends, strict=True))
        )

    @property
    def n_parameters(self) -> int:
        """Number of parameters, each tied one counted once."""
        d, tails = self.d_model, self.bands[1:]
        words = sum(band.size * band.width + d * band.width for band in self.bands)
        untied = 0 if self.tied_projections else sum(d * band.width for band in tails)
        layer = 4 * (d * d + d) + 2 * d * self.d_mlp + self.d_mlp + d + 4 * d
        return words + untied + len(tails) * d + self.n_layers * layer


def config(**overrides: Any) -> Baevski18Config:
    """The full-size configuration, with these fields changed.

    Raises:
        ValueError: for a field that there is not, or sizes that do not go together.
    """
    known = [field.name for field in dataclasses.fields(Baevski18Config)]
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise ValueError(f"no such field: {shown(', '.join(unknown))}; the fields are {', '.join(known)}.")
    if not isinstance(overrides.get("tied_projections", True), bool):
        raise ValueError(f"tied_projections is true or false, got {shown_value(overrides['tied_projections'])}.")
    try:
        if "cutoffs" in overrides:
            overrides["cutoffs"] = tuple(int(cutoff) for cutoff in overrides["cutoffs"])
        if "factor" in overrides:
            overrides["factor"] = float(overrides["factor"])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"cutoffs are whole numbers and factor is a number, got {shown_value(overrides.get('cutoffs'))} and "
            f"{shown_value(overrides.get('factor'))}."
        ) from error
    return Baevski18Config(**overrides)
