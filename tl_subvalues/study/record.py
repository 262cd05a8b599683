"""What a long run has worked out so far, on disk: append-only JSON lines that survive a kill at any moment.

The first line says which run the record belongs to (model, settings, facts); each further line is one finished item,
written out and synced before the next begins. Every line ends in a digest of itself and of the first line, so that one
which was damaged, or is another record's, is never taken for a result. A last line that is torn is dropped and worked
out again, so no item is lost or doubled.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from tl_subvalues.errors import shown
from tl_subvalues.files import for_one_run
from tl_subvalues.paths import named_path

SCHEMA = "tl-subvalues/record/2"
# A line's end: the digest, as the last of its JSON object's entries.
_END = re.compile(rb', "check": "([0-9a-f]{16})"\}\n')

Item = TypeVar("Item")
Settings = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


def digest(value: Any) -> str:
    """A short name for a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def resumed(
    path: Path | None,
    settings: Settings,
    count: int,
    work: Callable[[Sequence[int]], list[dict[str, Any]]],
    batch_size: int = 1,
) -> Iterator[dict[str, Any]]:
    """Items 0 to count − 1 in order: from the record as far as it goes, worked out and recorded from there on.

    A record that ends within a batch is continued there.

    Args:
        path: the record's file; None works everything out and keeps nothing.
        settings: what the items depend on, or a function that says so, which is called only where a record is kept; a
            record of other settings is refused.
        count: how many items there are.
        work: makes the items of a batch of numbers, in terms of JSON.
        batch_size: how many items a batch has.

    Raises:
        ValueError: if the record is of other settings, damaged, or in use.
    """
    if path is None:
        for batch in batches(range(count), batch_size):
            yield from (_through_json(result) for result in work(batch))
        return
    found = settings() if callable(settings) else settings
    header = _line({"schema": SCHEMA, **_through_json(dict(found))}, b"")
    seed = _check_of(header)
    with for_one_run(path, "name another record"), path.open("a+b") as file:
        done = 0
        for item in _recorded(file, path, header):
            if item.get("item") != done or done >= count:
                raise ValueError(f"{shown(path)}, line {done + 2} is not item {done} of {count}; remove the file.")
            done += 1
            yield item["result"]
        for batch in batches(range(done, count), batch_size):
            results = [_through_json(result) for result in work(batch)]
            lines = [_line({"item": number, "result": r}, seed) for number, r in zip(batch, results, strict=True)]
            _append(file, b"".join(lines))
            yield from results


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in order, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _recorded(file: BinaryIO, path: Path, header: bytes) -> Iterator[dict[str, Any]]:
    """Items on file, after checking whose they are; leaves the file at the end of its last whole line."""
    file.seek(0)
    first = file.readline()
    if not first.endswith(b"\n"):  # nothing, or a header that was not written to its end
        if not header.startswith(first):
            raise ValueError(f"{shown(path)} is no record of this kind; name another file.")
        file.truncate(0)
        _append(file, header)
        return
    found, expected = _parsed(first, path, 1, b""), json.loads(header)
    differing = [key for key in {**expected, **found} if key != "check" and found.get(key) != expected.get(key)]
    if differing:
        raise ValueError(
            f"{shown(path)} was made with another {shown(', '.join(differing))}; name another record, or remove it to "
            "start anew."
        )
    end, number = file.tell(), 1
    while (line := file.readline()).endswith(b"\n"):
        number += 1
        item = _parsed(line, path, number, _check_of(header))
        if "item" not in item or not isinstance(item.get("result"), dict):
            raise _no_record(path, number)
        yield item
        end += len(line)
    if line:  # torn
        file.truncate(end)


def _line(entries: Mapping[str, Any], seed: bytes) -> bytes:
    """A record's line: entries as JSON, the digest last."""
    body = json.dumps(dict(entries)).encode()
    return body[:-1] + b', "check": "' + _digest_of(body, seed) + b'"}\n'


def _digest_of(body: bytes, seed: bytes) -> bytes:
    return hashlib.sha256(seed + body).hexdigest()[:16].encode()


def _check_of(line: bytes) -> bytes:
    """The digest that stands on a line."""
    end = _END.search(line)
    return end[1] if end else b""


def _parsed(line: bytes, path: Path, number: int, seed: bytes) -> dict[str, Any]:
    """A line's entries.

    Raises:
        ValueError: naming file and line, if it is none, or not as it was written.
    """
    end = _END.search(line)
    if end is None or end.end() != len(line):
        raise _no_record(path, number)
    if _digest_of(line[: end.start()] + b"}", seed) != end[1]:
        raise ValueError(
            f"{shown(path)}, line {number} is not as it was written; remove the file, or this line and all after it."
        )
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _no_record(path, number) from error
    if not isinstance(found, dict):
        raise _no_record(path, number)
    return found


def _no_record(path: Path, number: int) -> ValueError:
    return ValueError(f"{shown(path)}, line {number} is no record of this kind; name another file.")


def _append(file: BinaryIO, line: bytes) -> None:
    file.write(line)
    file.flush()
    os.fsync(file.fileno())


def _through_json(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))


def record_path(record: Any, out: Any) -> Path | None:
    """Where a run is recorded: as asked, else beside its output, else nowhere.

    Raises:
        ValueError: if the folder does not exist.
    """
    chosen = record if record is not None else None if out is None else f"{out}.record.jsonl"
    if chosen is None:
        return None
    path = named_path(chosen)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{shown(path)}: not a file, or the folder to write into does not exist.")
    return path


def run_settings(view: Any, facts: Sequence[Any], **settings: Any) -> Callable[[], dict[str, Any]]:
    """What the results of a run depend on, for its record: model, weights, versions, facts, settings.

    A function, for reading all weights takes a second for 1.4 GB.
    """

    def found() -> dict[str, Any]:
        content = [[fact.tokens.tolist(), fact.asked.ids, fact.asked.against] for fact in facts]
        return {**view.provenance(), "facts": digest(content), **settings}

    return found
