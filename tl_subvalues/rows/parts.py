"""A long table made part by part: each part is on disk whole or not at all, and the file at the end too.

The parts lie in a folder beside the file, `FILE.parts`, with what they depend on. A part carries a digest of its bytes
in its name, so that a damaged one is made again; parts of other settings are refused, and the finished file's own
metadata say whose it is. Parts are Arrow files, which are written and read in no time; only the whole is packed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tl_subvalues.errors import shown
from tl_subvalues.files import UNFINISHED, for_one_run, settings_metadata, settings_of, write_whole
from tl_subvalues.paths import named_path

_SETTINGS = "settings.json"
_BEFORE = "parquet"  # what parts once were: not read, and removed with the others
# Columns whose values come again and again, the only ones that a dictionary makes smaller.
_REPEATED = ["side", "tokens.list.element"]


def require_writable(path: Any) -> Path:
    """The file that a path names, links followed.

    Raises:
        ValueError: if it is no .parquet file, or the folder to write into does not exist.
    """
    target = named_path(path)
    if target.suffix != ".parquet":
        raise ValueError(f"{shown(target)}: the index is a .parquet file.")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ValueError(f"{shown(target)}: not a file, or the folder to write into does not exist.")
    return target.resolve()


def written_in_parts(
    path: Path,
    settings: Mapping[str, Any],
    count: int,
    make: Callable[[int], pa.Table],
    done: Callable[[], Any],
) -> None:
    """Write a Parquet file of parts 0 to count − 1, those that are missing made one by one.

    Args:
        path: the file; one that is there with these settings is left as it is.
        settings: what the parts depend on, in terms of JSON.
        count: how many parts there are.
        make: makes a part.
        done: called after each.

    Raises:
        ValueError: if parts of other settings are there, or another run is writing them.
    """
    with for_one_run(path, "name another file"):
        folder = path.with_name(f"{path.name}.parts")
        if settings_of(path) != settings:
            _require_own(folder, settings)
            parts = []
            for number in range(count):
                parts.append(_found(folder, number) or _kept(folder, number, make(number)))
                done()
            _join(path, parts, settings)
        elif _settings_in(folder) != settings:
            return
        _remove(folder)


def _require_own(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder for parts of these settings, or see that its parts are.

    Raises:
        ValueError: naming the settings that differ.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{shown(folder)} is in the way: the parts are kept in a folder of that name.")
    folder.mkdir(exist_ok=True)
    if not (folder / _SETTINGS).exists():
        if any(not path.name.endswith(UNFINISHED) for path in folder.iterdir()):
            raise ValueError(f"{shown(folder)} holds files that are no parts of ours; name another file.")
        write_whole(folder / _SETTINGS, lambda file: file.write(json.dumps(dict(settings)).encode()))
        return
    found = _settings_in(folder)
    if found is None:
        raise ValueError(
            f"{shown(folder / _SETTINGS)} is not as it was written; remove the folder, or name another file."
        )
    differing = [key for key in {**settings, **found} if found.get(key) != settings.get(key)]
    if differing:
        raise ValueError(
            f"{shown(folder)} holds parts made with another {shown(', '.join(differing))}; remove the folder to start "
            "anew, or name another file."
        )


def _settings_in(folder: Path) -> dict[str, Any] | None:
    """What the parts in a folder depend on; None where nothing says so."""
    try:
        found = json.loads((folder / _SETTINGS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _remove(folder: Path) -> None:
    """Remove what is ours, and the folder unless something else is in it; what says whose they are last."""
    made = [path for suffix in ("arrow", _BEFORE) for path in folder.glob(f"[0-9]*-*.{suffix}")]
    for path in [*made, *folder.glob(f".*{UNFINISHED}"), folder / _SETTINGS]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _found(folder: Path, number: int) -> Path | None:
    """A part that was finished before; what is not as it was written is removed."""
    whole = None
    for path in folder.glob(f"{number:06d}-*.arrow"):
        if path.name == _name(number, path.read_bytes()):
            whole = path
        else:
            path.unlink()
    return whole


def _kept(folder: Path, number: int, table: pa.Table) -> Path:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, table.schema) as file:
        file.write_table(table)
    content = buffer.getvalue()
    path = folder / _name(number, content)
    write_whole(path, lambda file: file.write(content))
    return path


def _name(number: int, content: bytes | pa.Buffer) -> str:
    return f"{number:06d}-{hashlib.sha256(content).hexdigest()[:16]}.arrow"


def _join(path: Path, parts: list[Path], settings: Mapping[str, Any]) -> None:
    """All parts as one file, a part at a time."""
    schema = _table_in(parts[0]).schema.with_metadata(settings_metadata(settings))

    def copy(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema, use_dictionary=_REPEATED) as writer:
            for part in parts:
                writer.write_table(_table_in(part).replace_schema_metadata(schema.metadata))

    write_whole(path, copy, parts[0].parent)


def _table_in(part: Path) -> pa.Table:
    return pa.ipc.open_file(part).read_all()
