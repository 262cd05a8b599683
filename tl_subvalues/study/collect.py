"""Which units recur? Over many facts, the neurons and heads that are among the top of each, counted and summed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import pandas as pd
import pyarrow as pa

from tl_subvalues.model_view import ModelView, view_of
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.progress import bar
from tl_subvalues.readout.readout import Scale, require_scale
from tl_subvalues.study.facts import Fact, check_facts
from tl_subvalues.study.folder import into_folder
from tl_subvalues.study.jobs import Item, chosen_batch_size
from tl_subvalues.study.output import require_writable_table, write_table
from tl_subvalues.study.places import place_of
from tl_subvalues.study.record import record_path, resumed, run_settings
from tl_subvalues.study.sources import read_rows, stream_rows
from tl_subvalues.study.sums import UNITS, UnitSums, unit_rows
from tl_subvalues.study.traced import Tracer
from tl_subvalues.tracing.batch import tops_together


def collect(
    model: Any,
    facts: Any,
    *,
    top: SupportsIndex = 300,
    positions: bool = False,
    scale: Scale = "frozen",
    prepend_bos: bool | None = None,
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    on_error: str = "stop",
    out: Any = None,
    record: Any = None,
    batch_size: SupportsIndex | None = None,
    shard: tuple[int, int] | None = None,
    ray: bool | str = False,
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
        columns: as in `evaluate`.
        layout: as in `evaluate`.
        on_error: as in `evaluate`.
        out: a .parquet or .csv file to write the table to; or a folder for Parquet parts, one row a fact and unit:
            fact (the row's number among all), unit, label, increase, rank. `merge` makes the table of them. A part that
            is there is not made again.
        record: as in `evaluate`.
        batch_size: as in `evaluate`.
        shard: as in `evaluate`.
        ray: as in `evaluate`.
        show_progress: as in `evaluate`.

    Returns:
        One row a unit: unit (ffn_neuron, attn_neuron, head), label, sum_increase (of what the facts ask for, in nats,
        over the facts that have it in their top), n_facts (how many those are), mean_rank (among its kind there; 1 is
        the top).
        Kind by kind, the largest sum first. Of a shard, over its facts.

    Raises:
        ValueError: for bad facts or files, and a record or parts of other settings.
        UnsupportedModelError: as `trace`, and for models without FFN neurons.
    """
    view = view_of(model)
    require_scale(scale)
    job = Collecting(whole_number(top, "top"), bool(positions), scale)
    size = chosen_batch_size(batch_size, view)
    place = place_of(out, record=record, shard=shard, ray=ray)
    how: dict[str, Any] = {"on_error": on_error, "prepend_bos": prepend_bos}
    if place is not None:
        return into_folder(
            model, lambda measure: job, (), stream_rows(facts, columns, layout), place, size, show_progress, **how
        )
    require_writable_table(out)
    path = record_path(record, out)
    checked = check_facts(view, read_rows(facts, columns, layout), **how)
    settings = run_settings(view, checked.facts, what="collect", **job.settings())
    items_of = job.on(view)

    def work(numbers: Sequence[int]) -> list[Item]:
        return items_of([checked.facts[number] for number in numbers])

    sums = UnitSums()
    with bar("collect", len(checked.facts), "facts", show=show_progress) as shown:
        for item in resumed(path, settings, len(checked.facts), work, size):
            sums.add(item)
            shown.update()
    table = sums.table()
    table.attrs["skipped"] = checked.skipped
    if out is not None:
        write_table(table, out)
    return table


@dataclass(frozen=True)
class Collecting:
    """The job of `collect`: the top units of each fact."""

    top: int
    positions: bool
    scale: Scale
    what: str = "collect"
    by: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """What the units depend on."""
        return {"top": self.top, "positions": self.positions, "scale": self.scale}

    def on(self, view: ModelView) -> Callable[[Sequence[Fact]], list[Item]]:
        """What finds the units of a batch of facts."""
        tracer = Tracer(view, self.scale)
        return lambda facts: units_of(tracer, facts, self.top, self.positions)

    def rows(self, facts: Sequence[Fact], items: Sequence[Item]) -> pa.Table:
        """One row a fact and unit."""
        return unit_rows([fact.number for fact in facts], items)


def units_of(tracer: Tracer, facts: Sequence[Fact], top: int, positions: bool) -> list[Item]:
    """The top units of each fact of a batch: kind -> label -> (increase in nats, rank from 1)."""
    tops = tops_together(tracer.together(facts), UNITS, top)
    return [{unit: _units(labelled, keep=positions) for unit, labelled in one.items()} for one in tops]


def _units(labelled: Sequence[tuple[str, float]], keep: bool) -> dict[str, tuple[float, int]]:
    """Label -> (increase, rank); rows of one unit at several source positions together unless they are kept apart."""
    found: dict[str, tuple[float, int]] = {}
    for rank, (label, increase) in enumerate(labelled, start=1):
        name = label if keep else label.partition("@")[0]
        before, best = found.get(name, (0.0, rank))
        found[name] = before + increase, best
    return found
