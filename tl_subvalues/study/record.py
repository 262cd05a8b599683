"""What a long run has worked out so far, on disk: append-only JSON lines that survive a kill at any moment.

The first line says which run the record belongs to (model, settings, facts); each further line is one finished item,
written out and synced before the next begins. A last line that is torn is dropped and worked out again, so no item is
lost or doubled.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

SCHEMA = "tl-subvalues/record/1"


def digest(value: Any) -> str:
    """A short name for a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def resumed(
    path: Path | None, settings: Mapping[str, Any], count: int, work: Callable[[int], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Items 0 to count − 1 in order: from the record as far as it goes, worked out and recorded from there on.

    Args:
        path: the record's file; None works everything out and keeps nothing.
        settings: what the items depend on; a record of other settings is refused.
        count: how many items there are.
        work: makes an item, in terms of JSON.

    Raises:
        ValueError: if the record is of other settings, damaged, or in use.
    """
    if path is None:
        yield from (_through_json(work(number)) for number in range(count))
        return
    header = {"schema": SCHEMA, **_through_json(dict(settings))}
    with ExitStack() as stack:
        lock = FileLock(f"{path}.lock", timeout=0)
        try:
            stack.enter_context(lock)
        except Timeout as error:
            raise ValueError(f"{path} is being written by another run; wait for it, or name another record.") from error
        stack.callback(Path(lock.lock_file).unlink, missing_ok=True)
        done = 0
        with path.open("a+b") as file:
            for item in _recorded(file, path, header):
                if item["item"] != done or done >= count:
                    raise ValueError(f"{path}, line {done + 2} is not item {done} of {count}; remove the file.")
                done += 1
                yield item["result"]
            for number in range(done, count):
                line = json.dumps({"item": number, "result": work(number)})
                _append(file, line)
                yield json.loads(line)["result"]


def _recorded(file: Any, path: Path, header: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Items on file, after checking whose they are; leaves the file at the end of its last whole line."""
    file.seek(0)
    first = file.readline()
    if not first.endswith(b"\n"):  # nothing, or a header that was not written to its end
        if not json.dumps(header).encode().startswith(first):
            raise ValueError(f"{path} is no record of this kind; name another file.")
        file.truncate(0)
        _append(file, json.dumps(header))
        return
    found = _parsed(first, path, 1)
    differing = [key for key in {**header, **found} if found.get(key) != header.get(key)]
    if differing:
        raise ValueError(
            f"{path} was made with another {', '.join(differing)}; name another record, or remove it to start anew."
        )
    end, number = file.tell(), 1
    while (line := file.readline()).endswith(b"\n"):
        number += 1
        yield _parsed(line, path, number)
        end += len(line)
    if line:  # torn
        file.truncate(end)


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is no record of this kind; name another file.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}, line {number} is no record of this kind; name another file.")
    return found


def _append(file: Any, line: str) -> None:
    file.write(line.encode() + b"\n")
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
    path = Path(chosen)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: not a file, or the folder to write into does not exist.")
    return path


def run_settings(view: Any, facts: Sequence[Any], **settings: Any) -> dict[str, Any]:
    """What the results of a run depend on, for its record: model, weights, facts, package, settings."""
    content = [[fact.tokens.tolist(), fact.target_id] for fact in facts]
    return {
        "package": importlib.metadata.version("tl-subvalues"),
        "model": view.name,
        "weights": view.checksum(),
        "dtype": str(view.dtype),
        "facts": digest(content),
        **settings,
    }
