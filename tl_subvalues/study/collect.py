"""Which units recur? Over many facts, the neurons and heads that are among the top of each, counted and summed."""

from dataclasses import dataclass
from typing import Any, SupportsIndex

import pandas as pd

from tl_subvalues.model_view import view_of
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.progress import bar
from tl_subvalues.readout.readout import Scale, require_scale
from tl_subvalues.study.facts import check_facts, read_rows
from tl_subvalues.study.output import require_writable_table, write_table
from tl_subvalues.study.record import record_path, resumed, run_settings
from tl_subvalues.study.traced import Tracer
from tl_subvalues.tracing.trace import Trace

UNITS = ("ffn_neuron", "attn_neuron", "head")


def collect(
    model: Any,
    facts: Any,
    *,
    top: SupportsIndex = 300,
    positions: bool = False,
    scale: Scale = "frozen",
    prepend_bos: bool | None = None,
    on_error: str = "stop",
    out: Any = None,
    record: Any = None,
    show_progress: bool | None = None,
) -> pd.DataFrame:
    """FFN neurons, attention neurons and heads that raise targets most, over many facts.

    What is raised is what the facts ask for: log p of a word, of any of several, or against others (`against`).

    Memory grows with the number of different units, never with the number of facts.

    Args:
        model: a TransformerLens model.
        facts: as in `evaluate`.
        top: how many of each kind count in a fact (all heads, where there are fewer).
        positions: keep source positions in attention neurons' labels (L23H4D38@3), for prompts of one pattern. Else
            (L23H4D38) an attention neuron's increases at several source positions of a fact are summed, and the best
            of its ranks counts.
        scale: as in `trace`.
        prepend_bos: as in `trace`.
        on_error: as in `evaluate`.
        out: as in `evaluate`.
        record: as in `evaluate`.
        show_progress: as in `evaluate`.

    Returns:
        One row a unit: unit (ffn_neuron, attn_neuron, head), label, sum_increase (of what the facts ask for, in nats,
        over the facts that have it in their top), n_facts (how many those are), mean_rank (among its kind there; 1 is
        the top).
        Kind by kind, the largest sum first.

    Raises:
        ValueError: for bad facts or files, and a record of other settings.
        UnsupportedModelError: as `trace`, and for models without FFN neurons.
    """
    view = view_of(model)
    require_scale(scale)
    top = whole_number(top, "top")
    require_writable_table(out)
    path = record_path(record, out)
    checked = check_facts(view, read_rows(facts), on_error=on_error, prepend_bos=prepend_bos)
    settings = run_settings(view, checked.facts, what="collect", top=top, positions=positions, scale=scale)

    tracer = Tracer(view, scale)

    def work(number: int) -> dict[str, Any]:
        return fact_units(tracer(checked.facts[number]), top, positions)

    items = resumed(path, settings, len(checked.facts), work)
    sums: dict[tuple[str, str], UnitSum] = {}
    with bar("collect", len(checked.facts), "facts", show=show_progress) as shown:
        for item in items:
            for unit, found in item.items():
                for label, (increase, rank) in found.items():
                    sums.setdefault((unit, label), UnitSum()).add(increase, rank)
            shown.update()
    table = _table(sums)
    table.attrs["skipped"] = checked.skipped
    if out is not None:
        write_table(table, out)
    return table


@dataclass
class UnitSum:
    """A unit over the facts so far."""

    increase: float = 0.0
    facts: int = 0
    ranks: int = 0

    def add(self, increase: float, rank: int) -> None:
        """One more fact that has the unit in its top."""
        self.increase += increase
        self.facts += 1
        self.ranks += rank


def fact_units(traced: Trace, top: int, positions: bool) -> dict[str, dict[str, tuple[float, int]]]:
    """The top units of one fact: kind -> label -> (increase in nats, rank from 1)."""
    tables = {
        "ffn_neuron": traced.ffn_neurons(top=top),
        "attn_neuron": traced.attn_neurons(top=top),
        "head": traced.heads(top=top),
    }
    column = traced.target.column
    return {unit: _units(table, column, keep=positions) for unit, table in tables.items()}


def _units(table: pd.DataFrame, column: str, keep: bool) -> dict[str, tuple[float, int]]:
    """Label -> (increase, rank); rows of one unit at several source positions together unless they are kept apart."""
    found: dict[str, tuple[float, int]] = {}
    for rank, (label, increase) in enumerate(zip(table["label"], table[column].tolist(), strict=True), start=1):
        name = label if keep else label.partition("@")[0]
        before, best = found.get(name, (0.0, rank))
        found[name] = before + increase, best
    return found


def _table(sums: dict[tuple[str, str], UnitSum]) -> pd.DataFrame:
    rows = [
        {
            "unit": unit,
            "label": label,
            "sum_increase": one.increase,
            "n_facts": one.facts,
            "mean_rank": one.ranks / one.facts,
        }
        for (unit, label), one in sums.items()
    ]
    table = pd.DataFrame(rows, columns=["unit", "label", "sum_increase", "n_facts", "mean_rank"])
    order = table["unit"].map({unit: number for number, unit in enumerate(UNITS)})
    table = table.assign(order=order).sort_values(
        ["order", "sum_increase", "label"], ascending=[True, False, True], ignore_index=True
    )
    return table.drop(columns="order")
