"""Words that components write, as pandas tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tl_subvalues.labels import Unit, labels_of
from tl_subvalues.words.vocabulary import Words


def vocabulary_table(words: Iterable[Words], by: str, with_label: bool) -> pd.DataFrame:
    """One row a word: [label,] side, rank, token, token_id, its value, and its band where there are several."""
    told = list(words)
    labels = {"label": _repeated([one.label for one in told], told)} if with_label else {}
    return pd.DataFrame({**labels, "side": _repeated([one.side for one in told], told), **_columns(told, by)})


def writes_table(words: Iterable[Words], by: str) -> pd.DataFrame:
    """One row a word: label, rank, token, token_id, its value, and its band where there are several."""
    told = list(words)
    return pd.DataFrame({"label": _repeated([one.label for one in told], told), **_columns(told, by)})


def _repeated(names: Sequence[str], words: Sequence[Words]) -> Any:
    """Each name as often as its component has words."""
    return np.array([name for name, one in zip(names, words, strict=True) for _ in one.ids], dtype=object)


def _columns(words: Sequence[Words], by: str) -> dict[str, Any]:
    columns = {
        "rank": np.array([rank for one in words for rank in range(1, len(one.ids) + 1)], dtype=np.int64),
        "token": np.array([token for one in words for token in one.tokens], dtype=object),
        "token_id": np.array([token_id for one in words for token_id in one.ids], dtype=np.int64),
        by: np.array([value for one in words for value in one.values], dtype=np.float64),
    }
    bands = [band for one in words for band in one.bands or ()]
    return (
        {**columns, "band": np.array(bands, dtype=np.int64)} if any(one.bands is not None for one in words) else columns
    )


def rows_table(
    unit: Unit, fields: Mapping[str, Sequence[int | None]], columns: Mapping[str, Sequence[Any]]
) -> pd.DataFrame:
    """One row of the model a row: label, layer, and what else places it; then these columns."""
    table = pd.DataFrame({"label": labels_of(unit, fields), **fields, **columns})
    for name in fields:
        table[name] = table[name].astype("Int64" if name == "expert" else np.int64)
    return table
