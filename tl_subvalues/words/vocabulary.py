"""The tokens that components of a run write: the top, and on request the bottom, of a reading of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.components import component_of, subvalues_of, through_head, written
from tl_subvalues.decomposition.run import Run
from tl_subvalues.model_view import ModelView, decode_each
from tl_subvalues.numerics.extremes import extremes
from tl_subvalues.progress import step
from tl_subvalues.readout.readout import Readout
from tl_subvalues.words.readings import WordReading, run_reading


@dataclass(frozen=True)
class Words:
    """One side of a component's vocabulary, in the order of rank."""

    label: str
    side: str  # "top" or "bottom"
    tokens: list[str]
    ids: list[int]
    values: list[float]  # by the reading
    bands: list[int] | None  # the piece of the vocabulary of each word, where there are several


def vocabulary(
    run: Run, readout: Readout, labels: Sequence[str], k: int, by: str, through: str | None
) -> Iterator[Words]:
    """The k words at the top and at the bottom of each component, sign as stored unless the reading is of the run.

    Args:
        run: whose components they are.
        readout: how they are read.
        labels: of the components.
        k: words a side; fewer where the vocabulary is smaller.
        by: the reading, "cosine", "bs_value" or "prob_increase".
        through: None, or a head that the components are read through.

    Raises:
        ValueError: if there is no such component, reading, or head that reads the component.
    """
    reading = run_reading(readout, by, _residuals(run))
    if reading.of_run and through is not None:
        raise ValueError(
            f"by={by!r} is what a component itself does in this run; through= reads directions, by 'cosine' or "
            "'bs_value'."
        )
    if reading.of_run:
        vectors, sites = _added(run, labels), _sites_here(run, labels, by)
    else:
        vectors = torch.stack(
            [written(run, one) if through is None else through_head(run, one, through) for one in labels]
        )
        sites = torch.zeros(len(labels), dtype=torch.long, device=vectors.device)
    yield from _words(run.view, readout, labels, k, reading, vectors, sites, ("top", "bottom"))


def writes(run: Run, readout: Readout, labels: Sequence[str], k: int, by: str) -> Iterator[Words]:
    """The k words that each component writes in this run, its coefficient's sign included; none if it adds nothing.

    Args:
        run: whose components they are.
        readout: how they are read.
        labels: of the components.
        k: words of each.
        by: the reading.

    Raises:
        ValueError: if there is no such component or reading; for what is added at another position, by a reading of
            what it does here.
    """
    reading = run_reading(readout, by, _residuals(run))
    vectors = _added(run, labels)
    sites = _sites_here(run, labels, by) if reading.of_run else torch.zeros(len(labels), dtype=torch.long)
    found = _words(run.view, readout, labels, k, reading, vectors, sites.to(vectors.device), ("top",))
    for words, nothing in zip(found, (vectors == 0).all(-1).tolist(), strict=True):
        yield Words(words.label, words.side, [], [], [], None if words.bands is None else []) if nothing else words


def _words(
    view: ModelView,
    readout: Readout,
    labels: Sequence[str],
    k: int,
    reading: WordReading,
    vectors: Float[Tensor, "n d_model"],
    sites: Int[Tensor, " n"],
    sides: Sequence[str],
) -> Iterator[Words]:
    for start in range(0, len(labels), reading.at_once):
        step(f"words: {start:,} of {len(labels):,} parts")
        at = slice(start, start + reading.at_once)
        panels = reading.panels(vectors[at], sites[at])
        best = extremes(panels, k, [side == "top" for side in sides])
        for number, label in enumerate(labels[at]):
            for side in sides:
                values, index = (part[number].tolist() for part in best[side == "top"])
                bands = [readout.band(token) for token in index] if readout.n_bands > 1 else None
                yield Words(label, side, decode_each(view, index), index, values, bands)


def _added(run: Run, labels: Sequence[str]) -> Float[Tensor, "label d_model"]:
    """What each component adds to the residual stream, at the position that its label names or else at the run's."""
    places: dict[int, list[int]] = defaultdict(list)
    for number, label in enumerate(labels):
        at = component_of(run, label).at
        places[run.position if at is None else at].append(number)
    found: list[Tensor] = [torch.empty(0)] * len(labels)
    for position, numbers in places.items():
        vectors = subvalues_of(run.at(position), [labels[number] for number in numbers])
        for number, vector in zip(numbers, vectors, strict=True):
            found[number] = vector
    return torch.stack(found)


def _residuals(run: Run) -> Float[Tensor, "site d_model"]:
    return torch.stack([site.residual for site in run.sites])


def _sites_here(run: Run, labels: Sequence[str], by: str) -> Int[Tensor, " label"]:
    """The site of each component, among the run's.

    Raises:
        ValueError: for one that is added at another position.
    """
    numbers = {(site.layer, site.sublayer): number for number, site in enumerate(run.sites)}
    found = []
    for label in labels:
        component = component_of(run, label)
        if component.at not in (None, run.position):
            raise ValueError(
                f"{label!r} is added at another position than this trace's, which is {run.position}, so it raises no "
                f"probability there by itself; by={by!r} cannot read it, 'cosine' and 'bs_value' can."
            )
        found.append(numbers[component.layer, component.sublayer])
    return torch.tensor(found, device=run.view.device)
