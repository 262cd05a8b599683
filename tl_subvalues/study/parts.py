"""Parts of a run over many facts: Parquet files in a folder, each there whole or not at all, for one shard each.

Shard i of n has the rows i, i + n, i + 2n, … of the facts: whether a row is its own is known before all were read. Its
rows are cut into parts by their place among them (0, 1, 2, …); the name of a part says which they are, its metadata
what they depend on. A part is made again only where it is not there or damaged, and always of the same rows under the
same name: nothing is lost or doubled, whoever is killed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tl_subvalues.errors import shown
from tl_subvalues.files import UNFINISHED, for_one_run, settings_metadata, settings_of, write_whole
from tl_subvalues.model_view.indexing import whole_number

SCHEMA = "tl-subvalues/parts/1"
# Rows of the facts in a part: enough for some seconds of work and a file of 2 MB, and 64 parts or more of a shard, so
# that workers have something to share.
_MOST, _LEAST, _SHARED = 256, 16, 64
_NAME = re.compile(r"shard-(\d{5})-of-(\d{5})-(\d{9})-(\d{9})\.parquet")


@dataclass(frozen=True)
class Shard:
    """Rows index, index + of, index + 2 of, … of the facts."""

    index: int = 0
    of: int = 1

    @property
    def name(self) -> str:
        """What the names of its files begin with."""
        return f"shard-{self.index:05d}-of-{self.of:05d}"

    def numbers(self, total: int) -> range:
        """Which of so many rows it has."""
        return range(self.index, total, self.of)


def require_shard(shard: Any) -> Shard:
    """The shard that a user names; None is all in one.

    Raises:
        ValueError: unless it is (i, n) with 0 <= i < n.
    """
    if shard is None:
        return Shard()
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise ValueError(f"shard is (i, n), the i-th of n counted from 0, got {shard!r}.")
    index, of = whole_number(shard[0], "shard's i", least=0), whole_number(shard[1], "shard's n")
    if index >= of or of > 99_999:
        raise ValueError(f"shard is (i, n) with i from 0 to n - 1 and n below 100,000, got {(index, of)}.")
    return Shard(index, of)


def part_size(count: int) -> int:
    """Rows of the facts in a part, of a shard of so many: the same in every run over it."""
    return max(_LEAST, min(_MOST, -(-count // _SHARED)))


@dataclass(frozen=True)
class Part:
    """One part as its metadata have it."""

    path: Path
    settings: Mapping[str, Any]
    shard: Shard
    places: range
    columns: Sequence[str]
    skipped: Sequence[tuple[int, str]]

    @property
    def numbers(self) -> range:
        """The rows of the facts that it is of, among all."""
        return range(
            self.shard.index + self.shard.of * self.places.start,
            self.shard.index + self.shard.of * self.places.stop,
            self.shard.of,
        )


def part_at(path: Path) -> Part | None:
    """The part in a file; None where it is none of ours, or torn."""
    found = settings_of(path)
    try:
        own = found.pop("part")
        shard, places = Shard(*map(int, own["shard"])), range(*map(int, own["places"]))
        columns = [str(name) for name in own["columns"]]
        skipped = [(int(number), str(problem)) for number, problem in own["skipped"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return Part(path, found, shard, places, columns, skipped) if found.get("schema") == SCHEMA else None


# Columns of few different texts, which are kept as numbers.
_TEXTS = {"evaluate": ["ranking"]}


def read_part(part: Part) -> pa.Table:
    """A part's rows, checked against the sums that are in the file; texts as numbers with a dictionary.

    Raises:
        ValueError: if it is damaged, saying what to do.
    """
    texts = _TEXTS.get(part.settings.get("what", ""))
    try:
        with pq.ParquetFile(part.path, page_checksum_verification=True, read_dictionary=texts) as file:
            rows = file.read().unify_dictionaries()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(part) from error
    if rows.column_names != list(part.columns):  # names are not in the sums
        raise _damaged(part)
    return rows


def _damaged(part: Part) -> ValueError:
    return ValueError(
        f"{shown(part.path)} is not as it was written; remove it, and run shard {part.shard.index} of "
        f"{part.shard.of} again."
    )


@dataclass(frozen=True)
class PartsFolder:
    """Where the parts of one shard are written, by this process or by workers."""

    path: Path
    settings: Mapping[str, Any]
    shard: Shard
    count: int  # rows of the shard

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The shard for this run alone, and without what a killed one left unfinished.

        Raises:
            ValueError: if another run is at it, or parts of other settings or other shards are in the folder.
        """
        self.path.mkdir(exist_ok=True)
        with for_one_run(self.path / self.shard.name, "name another folder or shard"):
            self._require_own()
            for left in self.path.glob(f".{self.shard.name}-*{UNFINISHED}"):
                left.unlink(missing_ok=True)
            yield

    def _require_own(self) -> None:
        seen: set[str] = set()
        for path in sorted(self.path.iterdir()):
            named = _NAME.fullmatch(path.name)
            if named is None or (named[1] in seen and int(named[1]) != self.shard.index):
                continue  # of other shards the first part speaks for all; `merge` looks at every one
            seen.add(named[1])
            if int(named[2]) != self.shard.of:
                raise ValueError(
                    f"{shown(self.path)} holds parts of {int(named[2])} shards, not {self.shard.of}; name "
                    "another folder."
                )
            part = part_at(path)
            if part is not None:
                require_same(self.settings, part, f"{shown(self.path)} holds parts")

    def missing(self) -> list[range]:
        """The parts that are not there whole, as places among the shard's rows."""
        size = part_size(self.count)
        parts = (range(start, min(start + size, self.count)) for start in range(0, self.count, size))
        return [places for places in parts if not self._is_whole(places)]

    def _is_whole(self, places: range) -> bool:
        part = part_at(self.file(places))
        if part is None or part.shard != self.shard or part.places != places:
            return False
        try:
            return len(read_part(part)) > 0 or len(part.skipped) == len(places)
        except ValueError:
            return False

    def file(self, places: range) -> Path:
        """Where the part of these rows is."""
        return self.path / f"{self.shard.name}-{places.start:09d}-{places.stop:09d}.parquet"

    def write(self, places: range, table: pa.Table, skipped: Sequence[tuple[int, str]]) -> None:
        """Write the part of these rows, in one step; one that is there is replaced."""
        part = {
            "shard": [self.shard.index, self.shard.of],
            "places": [places.start, places.stop],
            "columns": table.column_names,
            "skipped": [list(one) for one in skipped],
        }
        content = table.replace_schema_metadata(settings_metadata({**self.settings, "part": part}))
        texts = [field.name for field in content.schema if not pa.types.is_floating(field.type)]

        def fill(file: Any) -> None:
            pq.write_table(content, file, compression="zstd", use_dictionary=texts, write_page_checksum=True)

        write_whole(self.file(places), fill, tag=f"{self.shard.name}-")


def require_same(settings: Mapping[str, Any], part: Part, what: str) -> None:
    """Refuse a part of other settings.

    Raises:
        ValueError: naming what differs.
    """
    expected = json.loads(json.dumps(dict(settings)))
    differing = [key for key in {**expected, **part.settings} if part.settings.get(key) != expected.get(key)]
    if differing:
        raise ValueError(
            f"{what} made with another {shown(', '.join(differing))}; name another folder, or remove what is there."
        )
