"""Units over many facts, summed: fact by fact, or part by part of rows that were written."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from tl_subvalues.labels import Unit

UNITS: tuple[Unit, ...] = ("ffn_neuron", "attn_neuron", "head")
COLUMNS = ["unit", "label", "sum_increase", "n_facts", "mean_rank"]
# Unit -> label -> (increase in nats, rank from 1), of one fact.
Found = Mapping[str, Mapping[str, Sequence[Any]]]


class UnitSums:
    """Sums over the facts so far, one for each different unit: memory grows with these, never with the facts."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], list[Any]] = {}

    def add(self, found: Found) -> None:
        """One more fact."""
        for unit, labels in found.items():
            for label, (increase, rank) in labels.items():
                one = self._sums.setdefault((unit, label), [0.0, 0, 0])
                one[0] += increase
                one[1] += 1
                one[2] += rank

    def table(self) -> pd.DataFrame:
        """One row a unit, kind by kind, the largest sum first; equal ones by label."""
        increases, facts, ranks = ([one[i] for one in self._sums.values()] for i in range(3))
        units, labels = ([key[i] for key in self._sums] for i in range(2))
        return _in_order(units, labels, increases, facts, ranks)


class RowSums:
    """Sums over the rows of parts so far: of each part first, then of those together, whenever enough have come.

    In float64, in the order of the parts: against sums in the order of the facts it moves the last digits.
    """

    # Rows of summed parts that are held before they are summed together: some 100 MB.
    _HELD = 2_000_000

    def __init__(self) -> None:
        self._held: list[pa.Table] = []
        self._rows, self._most = 0, self._HELD

    def add(self, rows: pa.Table) -> None:
        """The facts of a part: columns unit, label, increase, rank, each unit once in a fact."""
        with_count = rows.select(["unit", "label", "increase", "rank"])
        summed = with_count.group_by(["unit", "label"], use_threads=False).aggregate(
            [("increase", "sum"), ("increase", "count"), ("rank", "sum")]
        )
        self._held.append(summed.rename_columns(_name(summed)))
        self._rows += len(summed)
        if self._rows > self._most:
            self._together()
            # Where there are more units than that, sums are not made over and over for a few new rows.
            self._most = max(self._HELD, 2 * self._rows)

    def _together(self) -> None:
        if self._held:
            grouped = pa.concat_tables(self._held).group_by(["unit", "label"], use_threads=False)
            summed = grouped.aggregate([("increase", "sum"), ("facts", "sum"), ("rank", "sum")])
            self._held = [summed.rename_columns(_name(summed))]
            self._rows = len(summed)

    def table(self) -> pd.DataFrame:
        """As of `UnitSums`."""
        self._together()
        if not self._held:
            return _in_order([], [], [], [], [])
        (summed,) = self._held
        return _in_order(*(summed[name].to_pylist() for name in ("unit", "label", "increase", "facts", "rank")))


def _name(summed: pa.Table) -> list[str]:
    """What sums are called: as what was summed."""
    names = {"increase_sum": "increase", "increase_count": "facts", "facts_sum": "facts", "rank_sum": "rank"}
    return [names.get(name, name) for name in summed.column_names]


def _in_order(units: list[str], labels: list[str], increases: Any, facts: Any, ranks: Any) -> pd.DataFrame:
    table = pd.DataFrame({"unit": units, "label": labels, "sum_increase": increases, "n_facts": facts})
    table["mean_rank"] = pd.Series(ranks, dtype="float64") / table["n_facts"]
    order = table["unit"].map({unit: number for number, unit in enumerate(UNITS)})
    table = table.assign(order=order).sort_values(
        ["order", "sum_increase", "label"], ascending=[True, False, True], ignore_index=True
    )
    return table[COLUMNS]


def unit_rows(numbers: Iterable[int], found: Iterable[Found]) -> pa.Table:
    """Rows of a part: columns fact, unit, label, increase, rank."""
    columns: dict[str, list[Any]] = {name: [] for name in ("fact", "unit", "label", "increase", "rank")}
    for number, units in zip(numbers, found, strict=True):
        for unit, labels in units.items():
            columns["fact"] += [number] * len(labels)
            columns["unit"] += [unit] * len(labels)
            columns["label"] += labels
            columns["increase"] += [increase for increase, _ in labels.values()]
            columns["rank"] += [rank for _, rank in labels.values()]
    types = {"fact": pa.int64(), "increase": pa.float64(), "rank": pa.int32()}
    return pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})
