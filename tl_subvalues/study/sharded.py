"""A run over one shard of the facts, part by part, into a folder."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_subvalues.errors import shown
from tl_subvalues.model_view import ModelView, prompt_tokens
from tl_subvalues.progress import bar
from tl_subvalues.readout.targets import Measure
from tl_subvalues.study.facts import Fact, good_facts
from tl_subvalues.study.jobs import Item, Job
from tl_subvalues.study.layouts import COLUMNS
from tl_subvalues.study.parts import SCHEMA, PartsFolder, Shard
from tl_subvalues.study.record import batches
from tl_subvalues.study.sources import Row

# Rows whose token ids are part of what says that the facts are the same: another tokenizer is seen at once.
_FIRST = 16


@dataclass(frozen=True)
class Held:
    """The rows of one shard, and what is known of all."""

    rows: list[Row]
    total: int
    digest: str


def hold(rows: Iterable[Row], shard: Shard, by: Sequence[str], tokens: Callable[[Row], Any]) -> Held:
    """Read all rows and keep those of one shard, of their columns those that are needed.

    Args:
        rows: of the facts, each of which is read once.
        shard: whose rows to keep.
        by: columns that are needed beside prompt, target and against.
        tokens: token ids of a row, of the first few.

    Raises:
        ValueError: if there are no rows, or a column is not there.
    """
    kept, total, digest = [], 0, hashlib.sha256()
    needed = (*COLUMNS, "against", *by)
    for row in rows:
        missing = [name for name in by if row.problem is None and name not in row.columns]
        if missing:
            raise ValueError(
                f"the facts have no column {missing[0]!r} to group by; there are {shown(list(row.columns))}."
            )
        columns = {name: row.columns[name] for name in needed if name in row.columns}
        content = [columns.get(name) for name in needed]
        ids = tokens(row) if total < _FIRST else None
        digest.update(json.dumps([content, row.problem, ids], default=_plain).encode() + b"\n")
        if total % shard.of == shard.index:
            kept.append(Row(row.where, columns, row.problem, row.number))
        total += 1
    if not total:
        raise ValueError("no facts: there are no rows.")
    return Held(kept, total, digest.hexdigest()[:16])


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


@dataclass(frozen=True)
class Checked:
    """What was found when a shard's rows were looked at before the run: their measure, and whether any is good."""

    measure: Measure
    good: int


def check_shard(view: ModelView, rows: Sequence[Row], on_error: str, prepend_bos: bool | None) -> Checked:
    """Look at every row before anything runs, and keep nothing of them.

    Raises:
        ValueError: as in `check_facts`.
    """
    measure: Measure = "log_prob"
    good = 0
    for fact in good_facts(view, rows, lambda row, problem: None, on_error=on_error, prepend_bos=prepend_bos):
        measure, good = fact.asked.measure, good + 1
    return Checked(measure, good)


def first_tokens(view: ModelView, prepend_bos: bool | None) -> Callable[[Row], Any]:
    """Token ids of a row's prompt; None where it has none."""

    def tokens(row: Row) -> Any:
        try:
            return prompt_tokens(view, row.columns.get("prompt"), prepend_bos).tolist()
        except (ValueError, TypeError):
            return None

    return tokens


@dataclass(frozen=True)
class Work:
    """What a worker needs beside the model: the job, where its parts go, and how rows are read."""

    job: Job
    folder: PartsFolder
    prepend_bos: bool | None
    batch_size: int

    def opened(self, view: ModelView) -> Callable[[range, Sequence[Row]], int]:
        """What makes one part of its rows with a model, writes it, and says how many rows that were."""
        items_of = self.job.on(view)

        def write(places: range, rows: Sequence[Row]) -> int:
            skipped: list[tuple[int, str]] = []

            def tell(row: Row, problem: str) -> None:
                skipped.append((row.number, problem))

            facts: list[Fact] = list(good_facts(view, rows, tell, on_error="skip", prepend_bos=self.prepend_bos))
            items: list[Item] = [item for batch in batches(facts, self.batch_size) for item in items_of(batch)]
            self.folder.write(places, self.job.rows(facts, items), skipped)
            return len(rows)

        return write


def run_shard(
    view: ModelView,
    job: Job,
    held: Held,
    shard: Shard,
    measure: Measure,
    out: Path,
    *,
    prepend_bos: bool | None,
    batch_size: int,
    workers: Callable[[Work, list[range], Sequence[Row], Callable[[int], Any]], None] | None = None,
    show_progress: bool | None = None,
) -> PartsFolder:
    """Make the parts of a shard that are not there.

    Args:
        view: the model.
        job: what to work out.
        held: the shard's rows.
        shard: which it is.
        measure: of its facts.
        out: the folder.
        prepend_bos: as in `trace`.
        batch_size: how many facts are worked through together.
        workers: who does it, told of the work, the missing parts, the shard's rows and whom to tell how many rows are
            done; None is this process.
        show_progress: show a bar over the shard's rows.

    Raises:
        ValueError: for parts of other settings in the folder, or another run over the same shard.
    """
    settings = {
        "schema": SCHEMA,
        "what": job.what,
        **view.provenance(),
        "facts": held.digest,
        "n_facts": held.total,
        "measure": measure,
        "prepend_bos": prepend_bos,
        **job.settings(),
    }
    folder = PartsFolder(out, settings, shard, len(held.rows))
    work = Work(job, folder, prepend_bos, batch_size)
    with folder.alone():
        missing = folder.missing()
        with bar(job.what, len(held.rows), "facts", show=show_progress) as shown_bar:
            shown_bar.update(len(held.rows) - sum(map(len, missing)))
            if workers is not None:
                if missing:
                    workers(work, missing, held.rows, shown_bar.update)
            elif missing:
                write = work.opened(view)
                for places in missing:
                    shown_bar.update(write(places, held.rows[places.start : places.stop]))
    return folder
