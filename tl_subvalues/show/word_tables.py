"""Words that components write, as pandas tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tl_subvalues.labels import Unit, labels_of
from tl_subvalues.words.vocabulary import Words


def vocabulary_table(words: Iterable[Words], by: str, with_label: bool) -> pd.DataFrame:
    """One row a word: [label,] side, rank, token, token_id, its value, and its band where there are several."""
    frames = []
    for side in words:
        columns: dict[str, Any] = {"label": side.label} if with_label else {}
        frames.append(pd.DataFrame({**columns, "side": side.side, **_columns(side, by)}))
    return pd.concat(frames, ignore_index=True)


def writes_table(words: Iterable[Words], by: str) -> pd.DataFrame:
    """One row a word: label, rank, token, token_id, its value, and its band where there are several."""
    return pd.concat([pd.DataFrame({"label": one.label, **_columns(one, by)}) for one in words], ignore_index=True)


def _columns(words: Words, by: str) -> dict[str, Any]:
    columns = {
        "rank": np.arange(1, len(words.ids) + 1),
        "token": np.array(words.tokens, dtype=object),
        "token_id": np.array(words.ids, dtype=np.int64),
        by: np.array(words.values, dtype=np.float64),
    }
    return columns if words.bands is None else {**columns, "band": np.array(words.bands, dtype=np.int64)}


def rows_table(
    unit: Unit, fields: Mapping[str, Sequence[int | None]], columns: Mapping[str, Sequence[Any]]
) -> pd.DataFrame:
    """One row of the model a row: label, layer, and what else places it; then these columns."""
    table = pd.DataFrame({"label": labels_of(unit, fields), **fields, **columns})
    for name in fields:
        table[name] = table[name].astype("Int64" if name == "expert" else np.int64)
    return table
