"""The words of every row as one Parquet file, made in parts that survive a kill at any moment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa
import torch

from tl_subvalues.model_view import ModelView, decode_each, view_of
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.progress import bar
from tl_subvalues.readout.readout import Readout
from tl_subvalues.rows.parts import require_writable, written_in_parts
from tl_subvalues.rows.rows import Rows, RowUnit, Span
from tl_subvalues.rows.words import words_of
from tl_subvalues.show.word_tables import rows_table
from tl_subvalues.words.readings import ByRow, RowReading, row_reading

SCHEMA = "tl-subvalues/index/1"
_SIDES = ("top", "bottom")
# Rows of a part, as far as their words are no more than so many: some seconds of work, and 20 MB of memory.
_ROWS, _WORDS = 4096, 1 << 20


@no_autocast_no_grad
def write_index(
    model: Any,
    path: Any,
    *,
    k: SupportsIndex = 50,
    unit: RowUnit = "ffn_neuron",
    by: ByRow = "bs_value",
    show_progress: bool | None = None,
) -> Path:
    """The top and the bottom k words of every row of a model, as a Parquet file that DuckDB and pandas can ask.

    Finished parts are kept in a folder beside the file until all are there: killed at any moment, the same call goes on
    from where it was. A finished file of the same model and settings is left as it is, any other is replaced.

    Args:
        model: a TransformerLens model.
        path: a file that ends in .parquet.
        k: words a side; fewer where the vocabulary is smaller.
        unit: "ffn_neuron", rows of W_out of all layers and experts; or "attn_neuron", rows of W_O.
        by: "bs_value" (at a final norm's scale of 1) or "cosine", as in `Trace.vocabulary`.
        show_progress: show a progress bar over the parts; None is in a terminal or a notebook.

    Returns:
        The file. It has two rows a neuron: label, layer, then neuron (with experts: expert, neuron) or head, dim; side
        ("top", "bottom"); token_ids, tokens and bs_values (or cosines), lists of k, sign as stored, the first the most
        extreme; with an adaptive softmax bands, too. Its metadata name the model, to the bit, versions and settings,
        under the key "tl_subvalues".

    Raises:
        ValueError: for a bad path, k, unit or reading; if parts of another model or other settings are in the way, or
            another run is writing them.
        UnsupportedModelError: if a layer has no neurons that can be read, or words have no columns.
    """
    target = require_writable(path)
    view, k = view_of(model), whole_number(k, "k")
    readout = Readout(view, scale=1.0)
    reading = row_reading(readout, by)
    rows = Rows(view, unit)
    k = min(k, readout.d_vocab)
    settings = {
        "schema": SCHEMA,
        **view.provenance(),
        "unit": unit,
        "by": by,
        "k": k,
    }
    plan = _plan(rows, max(1, min(_ROWS, _WORDS // k)))
    texts = _Texts(view)

    def make(number: int) -> pa.Table:
        return _table(rows, plan[number], readout, reading, texts, k)

    with bar("index", len(plan), "parts", show=show_progress) as shown:
        written_in_parts(target, settings, len(plan), make, shown.update)
    return target


def _plan(rows: Rows, size: int) -> list[list[Span]]:
    """The spans of each part: at most so many rows, small matrices together."""
    parts: list[list[Span]] = [[]]
    for span in rows.spans(size):
        if parts[-1] and sum(map(len, parts[-1])) + len(span) > size:
            parts.append([])
        parts[-1].append(span)
    return parts


def _table(
    rows: Rows, spans: Sequence[Span], readout: Readout, reading: RowReading, texts: "_Texts", k: int
) -> pa.Table:
    """The words of some rows, two table rows each."""
    found = [words_of(vectors, reading, k) for vectors in rows.vectors(spans)]
    ids, values = (np.concatenate([one[i] for one in found]).reshape(-1) for i in (0, 1))
    firsts = [rows.numbering.span(span.number).start for span in spans]
    numbers = [torch.arange(first + span.start, first + span.stop) for first, span in zip(firsts, spans, strict=True)]
    named = rows_table(rows.unit, rows.fields(torch.cat(numbers)), {})
    table = pa.Table.from_pandas(named.loc[named.index.repeat(len(_SIDES))], preserve_index=False)
    table = table.append_column("side", pa.array(list(_SIDES) * len(named)))
    lists = {"token_ids": pa.array(ids, pa.int32()), "tokens": texts.of(ids)}
    lists[f"{reading.by}s"] = pa.array(values, pa.float32())
    if readout.n_bands > 1:
        lists["bands"] = pa.array([readout.band(token) for token in ids.tolist()], pa.int8())
    offsets = pa.array(np.arange(0, k * len(table) + 1, k), pa.int32())
    for name, flat in lists.items():
        table = table.append_column(name, pa.ListArray.from_arrays(offsets, flat))
    return table.replace_schema_metadata(None)


class _Texts:
    """The words' texts, each made once."""

    def __init__(self, view: ModelView) -> None:
        self._view = view
        self._texts = np.full(view.readout.d_vocab, None, dtype=object)

    def of(self, ids: np.ndarray) -> pa.Array:
        """The text of every id."""
        new = [i for i in np.flatnonzero(np.bincount(ids)).tolist() if self._texts[i] is None]
        self._texts[new] = decode_each(self._view, new)
        return pa.array(self._texts, pa.string()).take(pa.array(ids))
