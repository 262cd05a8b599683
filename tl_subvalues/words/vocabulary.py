"""The tokens that components write and suppress: the top and the bottom of their bs-values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.components import through_head, written
from tl_subvalues.decomposition.run import Run
from tl_subvalues.model_view import decode_each
from tl_subvalues.readout.readout import Readout

# Components read in vocabulary space at a time: 64 rows of 256,000 words are 64 MB.
_LABELS = 64


@dataclass(frozen=True)
class Words:
    """One side of a component's vocabulary, in the order of rank."""

    label: str
    side: str  # "top" or "bottom"
    tokens: list[str]
    ids: list[int]
    values: list[float]  # bs-values
    bands: list[int] | None  # the piece of the vocabulary of each word, where there are several


def vocabulary(run: Run, readout: Readout, labels: Sequence[str], k: int, through: str | None) -> Iterator[Words]:
    """The k words at the top and at the bottom of each component, sign as stored.

    Args:
        run: whose components they are.
        readout: how they are read.
        labels: of the components.
        k: words a side; fewer where the vocabulary is smaller.
        through: None, or a head that the components are read through.

    Raises:
        ValueError: if there is no such component, or no such head that reads it.
    """
    for label, values in zip(labels, _bs_values(run, readout, labels, through), strict=True):
        for side, largest in (("top", True), ("bottom", False)):
            best = torch.topk(values, min(k, len(values)), largest=largest)
            ids = best.indices.tolist()
            bands = [readout.band(token) for token in ids] if readout.n_bands > 1 else None
            yield Words(label, side, decode_each(run.view, ids), ids, best.values.tolist(), bands)


def _bs_values(
    run: Run, readout: Readout, labels: Sequence[str], through: str | None
) -> Iterator[Float[Tensor, " vocab"]]:
    """Bs-values of components one by one, the vocabulary read once for every few of them."""
    for start in range(0, len(labels), _LABELS):
        names = labels[start : start + _LABELS]
        rows = [written(run, name) if through is None else through_head(run, name, through) for name in names]
        yield from readout.bs_values(torch.stack(rows))
