"""Rows by the words that they write, and rows that are alike: one product of all rows with a few columns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.importance.search import require_top
from tl_subvalues.model_view import decode_each, view_of, word_ids
from tl_subvalues.numerics.angles import directions
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.readout import Readout
from tl_subvalues.rows.rows import Rows, RowUnit, row_of
from tl_subvalues.show.word_tables import rows_table
from tl_subvalues.words.readings import ByRow, RowReading, row_reading


@no_autocast_no_grad
def find(
    model: Any,
    words: Any,
    *,
    unit: RowUnit = "ffn_neuron",
    top: int | None = 50,
    by: ByRow = "cosine",
    largest: bool = True,
) -> pd.DataFrame:
    """The neurons of a model whose rows write a word, or any of several, sign as stored; no prompt is needed.

    Exact: all rows of all layers, experts' too, are multiplied with the words' columns. A row writes what stands at its
    bottom where its coefficient is negative: `largest=False` finds those.

    Args:
        model: a TransformerLens model.
        words: a word (text of one token, mind its leading space, or its id), or a list.
        unit: "ffn_neuron", rows of W_out; or "attn_neuron", rows of W_O, whatever their heads read.
        top: how many rows, None for all.
        by: "cosine" or "bs_value" (at a final norm's scale of 1), as in `Trace.vocabulary`.
        largest: False gives the rows that write the words least.

    Returns:
        Columns label, layer, then neuron (with experts: expert, neuron) or head, dim; word and token_id, the one of the
        words that the row writes most; value, its value by the reading; rank, how many words of the row's come before
        it, plus one, counted from the bottom for `largest=False`. With an adaptive softmax the rank is among the words
        of the band that the column `band` names. The highest value first, for `largest=False` the lowest.

    Raises:
        ValueError: for a word of no or several tokens, or one that the vocabulary lacks; for other arguments.
        UnsupportedModelError: if a layer has no neurons that can be read, or words have no columns.
    """
    view, top = view_of(model), require_top(top)
    readout = Readout(view, scale=1.0)
    reading = row_reading(readout, by)
    ids = list(word_ids(view, words, "words", each="word"))
    readout.require_columns()
    rows = Rows(view, unit)
    found = best_rows(rows, lambda vectors: reading.of_words(vectors, ids), top, largest)
    tokens = [ids[i] for i in found.which.tolist()]
    columns: dict[str, Any] = {"word": decode_each(view, tokens), "token_id": tokens, "value": found.values.tolist()}
    if readout.n_bands > 1:
        columns["band"] = [readout.band(token) for token in tokens]
    columns["rank"] = _ranks(readout, reading, rows.chosen(found.rows), tokens, largest)
    table = rows_table(unit, rows.fields(found.rows), columns)
    table.attrs = {"by": by, "searched": len(rows)}
    return table


@no_autocast_no_grad
def similar(model: Any, label: str, top: int | None = 50) -> pd.DataFrame:
    """The neurons whose rows point most nearly the same way as a given one's, as they enter the residual stream.

    Args:
        model: a TransformerLens model.
        label: an FFN neuron ("L24N1005", "L3E5N10"), compared with all FFN neurons, or an attention neuron
            ("L23H4D38"), compared with all attention neurons.
        top: how many, None for all.

    Returns:
        Columns label, layer, then neuron (with experts: expert, neuron) or head, dim; and cosine, the highest first.
        The neuron itself is left out.

    Raises:
        ValueError: if the label names no neuron of the model.
        UnsupportedModelError: if a layer has no neurons that can be read.
    """
    view, top = view_of(model), require_top(top)
    rows, number = row_of(view, label)
    own = directions(rows.chosen(torch.tensor([number])))[0]
    kept = None if top is None else top + 1  # the row itself may be anywhere among those that are equal to it
    found = best_rows(rows, lambda vectors: (directions(vectors) @ own).clamp(-1.0, 1.0)[:, None], kept, largest=True)
    others = torch.nonzero(found.rows != number).flatten()[:top]
    chosen = found.rows[others]
    return rows_table(rows.unit, rows.fields(chosen), {"cosine": found.values[others].tolist()})


@dataclass(frozen=True)
class Found:
    """Some rows, the best first; equal ones in the model's order."""

    rows: Int[Tensor, " n"]  # their numbers among all
    values: Float[Tensor, " n"]
    which: Int[Tensor, " n"]  # the column that the value is of


def best_rows(
    rows: Rows, values_of: Callable[[Tensor], Float[Tensor, "n column"]], top: int | None, largest: bool
) -> Found:
    """The rows with the highest (or lowest) values of any column, in one pass over all rows in blocks."""
    sign, first = (1.0 if largest else -1.0), 0
    best = (torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    for vectors in rows.vectors(rows.spans()):
        values, which = (sign * values_of(vectors)).max(-1)
        numbers = torch.arange(first, first + len(values))
        first += len(values)
        joined = [torch.cat([a.to(b), b]) for a, b in zip(best, (values.cpu(), which.cpu(), numbers), strict=True)]
        order = joined[0].argsort(descending=True, stable=True)[:top]
        best = (joined[0][order], joined[1][order], joined[2][order])
    return Found(best[2], sign * best[0], best[1])


def _ranks(
    readout: Readout, reading: RowReading, vectors: Float[Tensor, "n d_model"], tokens: list[int], largest: bool
) -> list[int]:
    """The place of each row's word among the words of its piece of the vocabulary, by the same reading.

    Two passes over the words, the first for the words' own values: of other digits, they could not be compared.
    """
    ranks: list[int] = []
    for start in range(0, len(vectors), reading.at_once):
        block, own = vectors[start : start + reading.at_once], tokens[start : start + reading.at_once]
        site = torch.zeros(len(block), dtype=torch.long, device=block.device)
        token = torch.tensor(own, device=block.device)
        value = block.new_zeros(len(block), 1)
        for words, values in reading.panels(block, site):
            here = torch.nonzero((token >= words.start) & (token < words.stop)).flatten()
            value[here, 0] = values[here, token[here] - words.start]
        pieces = [readout.piece(one) for one in own]
        first, last = (
            torch.tensor([getattr(p, end) for p in pieces], device=block.device)[:, None] for end in ("start", "stop")
        )
        before = torch.zeros(len(block), dtype=torch.long, device=block.device)
        for words, values in reading.panels(block, site):
            number = torch.arange(words.start, words.stop, device=block.device)
            ahead = values > value if largest else values < value
            before += (ahead & (number >= first) & (number < last)).sum(-1)
        ranks += (1 + before).tolist()
    return ranks
