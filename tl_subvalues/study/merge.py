"""The table of all parts: read one part at a time, after it is known that they belong together and none is missing."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tl_subvalues.errors import shown
from tl_subvalues.paths import named_path
from tl_subvalues.study.output import require_writable_table, write_table
from tl_subvalues.study.parts import Part, PartsFolder, Shard, part_at, read_part, require_same
from tl_subvalues.study.summary import summary_of_parts
from tl_subvalues.study.sums import RowSums

_SHOWN = 5


def merge(paths: Any, out: Any = None) -> pd.DataFrame:
    """The table of a run whose parts lie in folders: what `collect` or `evaluate` gives over all facts at once.

    No more than one part is in memory at a time, and one sum for each different unit (of `evaluate`, the facts of one
    ranking and k). Sums and means are made in float64. They are those of a run over all facts at once to float32
    rounding, for facts of a shard stand in other batches.

    Args:
        paths: a folder that `collect` or `evaluate` wrote parts into, or a part, or several of either.
        out: a .parquet or .csv file to write the table to.

    Returns:
        The table of `collect` or of `evaluate`; `attrs["skipped"]` has the bad rows that were left out.

    Raises:
        ValueError: for parts of different models, versions, facts or settings; for shards or parts that are missing,
            naming them; for facts that are there twice; for damaged parts, and files that are none.
    """
    require_writable_table(out)
    if isinstance(paths, PartsFolder):  # one shard of a run
        parts = _parts([paths.path / f"{paths.shard.name}-*.parquet"])
        _require_together(parts, [paths.shard])
    else:
        one = isinstance(paths, (str, bytes, Path)) or not isinstance(paths, Iterable)
        given = [named_path(path) for path in ([paths] if one else paths)]
        parts = _parts([path / "shard-*.parquet" if path.is_dir() else path for path in given])
        if not parts:
            raise ValueError(f"{shown(', '.join(map(str, given)))}: there are no parts to merge.")
        _require_together(parts, [Shard(i, parts[0].shard.of) for i in range(parts[0].shard.of)])
    make: Callable[[Sequence[Part]], pd.DataFrame] = _sums
    if parts and parts[0].settings.get("what") == "evaluate":
        make = _summary
    table = make(parts)
    skipped = sorted(one for part in parts for one in part.skipped)
    table.attrs["skipped"] = [problem for _, problem in skipped]
    if out is not None:
        write_table(table, out)
    return table


def _parts(patterns: Iterable[Path]) -> list[Part]:
    """The parts in files, in order of their shards and rows; one that is named twice counts once."""
    found: dict[Path, Part] = {}
    for pattern in patterns:
        for path in sorted(pattern.parent.glob(pattern.name)) if "*" in pattern.name else [pattern]:
            if not path.is_file():
                raise ValueError(f"{shown(path)}: there is no such file or folder.")
            part = part_at(path)
            if part is None:
                raise ValueError(f"{shown(path)} is no part of ours, or torn; remove it, and run its shard again.")
            found[path.resolve()] = part
    return sorted(found.values(), key=lambda part: (part.shard.of, part.shard.index, part.places.start))


def _require_together(parts: Sequence[Part], shards: Sequence[Shard]) -> None:
    """Refuse parts that are not of one run, are there twice, or lack some.

    Raises:
        ValueError: saying which.
    """
    for part in parts[1:]:
        if part.shard.of != parts[0].shard.of:
            raise ValueError(f"these are parts of {parts[0].shard.of} shards and of {part.shard.of}; merge one run.")
        require_same(parts[0].settings, part, f"{shown(part.path)} and {shown(parts[0].path)} were")
    total = parts[0].settings["n_facts"] if parts else 0
    lacking, empty = [], []
    for shard in shards if parts else []:
        own = [part for part in parts if part.shard == shard]
        expected = 0
        for part in own:
            if part.places.start < expected:
                raise ValueError(
                    f"{shown(part.path)} has facts that are in another part too; remove one of both, or run shard "
                    f"{shard.index} of {shard.of} anew."
                )
            if part.places.start > expected:
                lacking.append(f"shard {shard.index} lacks its rows {expected} to {part.places.start - 1}")
            expected = part.places.stop
        count = len(shard.numbers(total))
        if expected < count and not own:
            empty.append(shard.index)
        elif expected != count:
            lacking.append(f"shard {shard.index} lacks its rows {expected} to {count - 1}")
    if empty:
        lacking = [f"{'shard' if len(empty) == 1 else 'shards'} {', '.join(map(str, empty))}", *lacking]
    if lacking:
        more = f" (and {len(lacking) - _SHOWN} more)" if len(lacking) > _SHOWN else ""
        raise ValueError(
            f"of {parts[0].shard.of} shards there is missing: {'; '.join(lacking[:_SHOWN])}{more}; run them again."
        )


def _checked(part: Part) -> Any:
    """A part's rows, after seeing that they are of its facts, of all of them.

    Raises:
        ValueError: if they are not.
    """
    rows = read_part(part)
    numbers = rows["fact"].to_numpy()
    numbers = np.unique(numbers[np.diff(numbers, prepend=-1) != 0])  # those of one fact stand together
    expected = np.setdiff1d(np.asarray(part.numbers, dtype=np.int64), [number for number, _ in part.skipped])
    if not np.array_equal(numbers, expected):
        raise ValueError(
            f"{shown(part.path)} does not have the facts that it says; remove it, and run shard {part.shard.index} of "
            f"{part.shard.of} again."
        )
    return rows


def _sums(parts: Sequence[Part]) -> pd.DataFrame:
    sums = RowSums()
    for part in parts:
        sums.add(_checked(part))
    return sums.table()


def _summary(parts: Sequence[Part]) -> pd.DataFrame:
    for part in parts:
        _checked(part)
    settings = parts[0].settings
    return summary_of_parts(
        parts, rankings=settings["rankings"], ks=settings["ks"], by=settings["by"], seed=settings["seed"]
    )
