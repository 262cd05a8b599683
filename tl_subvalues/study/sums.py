"""Units over many facts, summed: fact by fact, or part by part of rows that were written."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tl_subvalues.labels import Unit

UNITS: tuple[Unit, ...] = ("ffn_neuron", "attn_neuron", "head")
COLUMNS = ["unit", "label", "sum_increase", "n_facts", "mean_rank"]
# Unit -> label -> (increase in nats, rank from 1), of one fact.
Found = Mapping[str, Mapping[str, Sequence[Any]]]


class UnitSums:
    """Sums over the facts so far, one for each different unit: memory grows with these, never with the facts.

    In float64; the order of the facts moves the last digits (15 or 16 are held of each number).
    """

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], int] = {}
        self._increase = np.zeros(0)
        self._facts = np.zeros(0, dtype=np.int64)
        self._ranks = np.zeros(0, dtype=np.int64)

    def add(self, found: Found) -> None:
        """One more fact."""
        for unit, labels in found.items():
            for label, (increase, rank) in labels.items():
                place = self._place(unit, label)
                self._increase[place] += increase
                self._facts[place] += 1
                self._ranks[place] += int(rank)

    def add_rows(self, rows: pa.Table) -> None:
        """The facts of a part: columns unit, label, increase, rank, each unit once in a fact."""
        units, labels = (rows[name].dictionary_encode().combine_chunks() for name in ("unit", "label"))
        unit_names, label_names = _names(units), _names(labels)
        n = len(label_names)
        code = np.asarray(_codes(units), dtype=np.int64) * n + np.asarray(_codes(labels))
        size = len(unit_names) * n
        counts = np.bincount(code, minlength=size)
        there = np.flatnonzero(counts)
        places = np.array([self._place(unit_names[i // n], label_names[i % n]) for i in there.tolist()], dtype=np.int64)
        self._increase[places] += np.bincount(code, rows["increase"].to_numpy(), size)[there]
        self._facts[places] += counts[there]
        # float64 holds whole numbers to 2^53
        self._ranks[places] += np.bincount(code, rows["rank"].to_numpy(), size)[there].astype(np.int64)

    def _place(self, unit: str, label: str) -> int:
        place = self._places.setdefault((unit, label), len(self._places))
        if place >= len(self._increase):
            more = max(1024, len(self._increase))
            self._increase = np.append(self._increase, np.zeros(more))
            self._facts = np.append(self._facts, np.zeros(more, dtype=np.int64))
            self._ranks = np.append(self._ranks, np.zeros(more, dtype=np.int64))
        return place

    def table(self) -> pd.DataFrame:
        """One row a unit, kind by kind, the largest sum first; equal ones by label."""
        n = len(self._places)
        facts = self._facts[:n]
        table = pd.DataFrame(
            {
                "unit": [unit for unit, _ in self._places],
                "label": [label for _, label in self._places],
                "sum_increase": self._increase[:n],
                "n_facts": facts,
                "mean_rank": self._ranks[:n] / np.maximum(facts, 1),
            },
            columns=COLUMNS,
        )
        order = table["unit"].map({unit: number for number, unit in enumerate(UNITS)})
        table = table.assign(order=order).sort_values(
            ["order", "sum_increase", "label"], ascending=[True, False, True], ignore_index=True
        )
        return table.drop(columns="order")


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


def _names(encoded: Any) -> list[str]:
    return [str(name) for chunk in _chunks(encoded) for name in chunk.dictionary.to_pylist()]


def _codes(encoded: Any) -> Any:
    (chunk,) = _chunks(encoded)
    return chunk.indices.to_numpy(zero_copy_only=False)


def _chunks(encoded: Any) -> list[Any]:
    return list(encoded.chunks) if isinstance(encoded, pa.ChunkedArray) else [encoded]
