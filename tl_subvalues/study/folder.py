"""A whole call of `collect` or `evaluate` into a folder: read, check, work, and the table of what was made."""

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from tl_subvalues.model_view import view_of
from tl_subvalues.readout.targets import Measure
from tl_subvalues.study.jobs import Job
from tl_subvalues.study.merge import merge
from tl_subvalues.study.places import Place
from tl_subvalues.study.sharded import check_shard, first_tokens, hold, run_shard
from tl_subvalues.study.sources import Row


def into_folder(
    model: Any,
    job_of: Callable[[Measure], Job],
    by: tuple[str, ...],
    rows: Iterable[Row],
    place: Place,
    batch_size: int,
    show_progress: bool | None,
    *,
    on_error: str,
    prepend_bos: bool | None,
) -> pd.DataFrame:
    """Make the parts of a shard, and the table of them.

    Args:
        model: a TransformerLens model.
        job_of: the job for facts of a measure.
        by: columns of the facts that it needs beside prompt, target and against.
        rows: of the facts, which are read once; those of the shard are held.
        place: the folder, the shard, and who works.
        batch_size: how many facts are worked through together.
        show_progress: as in `evaluate`.
        on_error: as in `evaluate`.
        prepend_bos: as in `trace`.
    """
    view = view_of(model)
    held = hold(rows, place.shard, by, first_tokens(view, prepend_bos))
    checked = check_shard(view, held.rows, on_error, prepend_bos)
    folder = run_shard(
        view,
        job_of(checked.measure),
        held,
        place.shard,
        checked.measure,
        place.folder,
        prepend_bos=prepend_bos,
        batch_size=batch_size,
        workers=place.workers(model),
        show_progress=show_progress,
    )
    return merge(folder)
