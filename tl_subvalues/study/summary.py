"""Means of an evaluation over its facts, with bootstrap intervals; from rows in memory, or from parts on disk."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tl_subvalues.study.parts import Part, read_part

MEASURES = ("mrr", "prob", "log_prob", "log_prob_diff")
WHEN = ("before", "after")
# Columns of the result, which a column of the facts to group by may not be called.
TAKEN = {"ranking", "k", "n_facts"} | {
    f"{name}_{when}{end}" for name in (*MEASURES, "rank") for when in WHEN for end in ("", "_low", "_high")
}
_RESAMPLES = 1000
# In front of the name of a column to group by, whose values are JSON in a part.
_BY = "by."


def summary(rows: pd.DataFrame, by: Sequence[str], seed: int) -> pd.DataFrame:
    """Means over the facts and their bootstrap intervals, one row for each group, ranking and k.

    Args:
        rows: one row for each fact, ranking and k, as `ablations` has them, and the columns of `by`.
        by: columns to group by.
        seed: of the bootstrap.
    """
    for when in WHEN:
        rows[f"mrr_{when}"] = 1.0 / rows[f"rank_{when}"]
        rows[f"prob_{when}"] = np.exp(rows[f"log_prob_{when}"])
    measures = [name for measure in MEASURES for when in WHEN if (name := f"{measure}_{when}") in rows]
    summed = []
    for key, group in rows.groupby([*by, "ranking", "k"], sort=False, dropna=False):
        values = group[measures].to_numpy(dtype=np.float64)
        low, high = _interval(values, seed)
        row = dict(zip([*by, "ranking", "k"], key if isinstance(key, tuple) else (key,), strict=True))
        row["n_facts"] = len(group)
        row |= dict(zip(measures, values.mean(0).tolist(), strict=True))
        for name, a, b in zip(measures, low.tolist(), high.tolist(), strict=True):
            row |= {f"{name}_low": a, f"{name}_high": b}
        summed.append(row)
    return pd.DataFrame(summed)


def _interval(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval of the columns' means over resampled rows; the same rows for every ranking."""
    generator = np.random.default_rng(seed)
    n = len(values)
    means = np.stack([values[generator.integers(0, n, n)].mean(0) for _ in range(_RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def outcome_rows(numbers: Sequence[int], groups: Sequence[Mapping[str, Any]], items: Sequence[Any]) -> pa.Table:
    """Rows of a part: fact, ranking, k, the outcomes, and what each fact has in the columns to group by."""
    rows = [
        {"fact": number, **{f"{_BY}{name}": _text(value) for name, value in group.items()}, **row}
        for number, group, item in zip(numbers, groups, items, strict=True)
        for row in item["rows"]
    ]
    if rows:
        return pa.Table.from_pylist(rows)
    return pa.table({"fact": pa.array([], pa.int64()), "ranking": pa.array([], pa.string())})


def _text(value: Any) -> str:
    return json.dumps(value, default=lambda other: other.tolist() if hasattr(other, "tolist") else str(other))


def summary_of_parts(
    parts: Sequence[Part], *, rankings: Sequence[str], ks: Sequence[int], by: Sequence[str], seed: int
) -> pd.DataFrame:
    """The summary of rows on disk, for one ranking and k at a time.

    The facts come in their own order, and so do the groups: it is the table of all rows in memory.
    """
    tables = []
    for ranking in rankings:
        for k in ks:
            rows = pd.concat(list(_chosen(parts, ranking, k)), ignore_index=True)
            rows = rows.sort_values("fact", kind="stable", ignore_index=True)
            keys = list(zip(*(rows[f"{_BY}{name}"] for name in by), strict=True)) if by else [()] * len(rows)
            for name in by:
                rows[name] = [json.loads(text) for text in rows.pop(f"{_BY}{name}")]
            tables.append(summary(rows.drop(columns="fact"), by, seed).assign(_order=range(len(set(keys)))))
    # Group after group, as the facts bring them, each with all rankings.
    table = pd.concat(tables, ignore_index=True).sort_values("_order", kind="stable", ignore_index=True)
    return table.drop(columns="_order")


def _chosen(parts: Sequence[Part], ranking: str, k: int) -> Iterator[pd.DataFrame]:
    for part in parts:
        rows = read_part(part)
        if len(rows):
            yield rows.filter(pc.and_(pc.equal(rows["ranking"], ranking), pc.equal(rows["k"], k))).to_pandas()
