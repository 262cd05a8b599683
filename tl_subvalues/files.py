"""Files in one step, whole or not there; files for one run alone; Parquet files that say what they depend on."""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from tl_subvalues.errors import shown

# The key of our entry in a Parquet file's metadata.
KEY = b"tl_subvalues"
UNFINISHED = ".unfinished"


def write_whole(path: Path, fill: Callable[[BinaryIO], Any], folder: Path | None = None, tag: str = "") -> None:
    """Write a file in one step: under another name first, synced, then in its place.

    Args:
        path: the file; what stands in its place is replaced.
        fill: writes the content.
        folder: where it is while it is not finished; beside the file otherwise.
        tag: what the name of an unfinished file begins with, after the dot that hides it.
    """
    # A name of its own for each run, made as mkstemp makes it, but with the permissions of any new file.
    unfinished = (path.parent if folder is None else folder) / f".{tag}{secrets.token_hex(8)}{UNFINISHED}"
    try:
        with unfinished.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def for_one_run(path: Path, way_out: str) -> Iterator[None]:
    """A file for this run alone, by whatever name it is called.

    Args:
        path: the file.
        way_out: what the user can do beside waiting, as in "name another file".

    Raises:
        ValueError: if another run has it.
    """
    place = path.resolve()
    lock = FileLock(place.with_name(f"{place.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{shown(path)} is being written by another run; wait for it, or {way_out}.") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def settings_metadata(settings: Mapping[str, Any]) -> dict[bytes, bytes]:
    """What a Parquet file depends on, as its schema's metadata."""
    return {KEY: json.dumps(dict(settings)).encode()}


def settings_of(path: Path) -> Any:
    """What a Parquet file says that it depends on; None where there is none, or no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return json.loads((pq.read_schema(path).metadata or {})[KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError, RecursionError):
        return None
