"""Folders in the user's cache that are made once: whole or not at all, by one process, and checked at every use."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

from tl_subvalues.errors import shown

_CHUNK = 2**20
_INVENTORY = "inventory.json"


def cache_folder() -> Path:
    """Where models are kept: TL_SUBVALUES_CACHE, or the platform's cache folder for this package."""
    return Path(os.environ.get("TL_SUBVALUES_CACHE") or platformdirs.user_cache_dir("tl-subvalues"))


def sha256_of(path: Path, advance: Callable[[float], None] = lambda part: None) -> str:
    """A file's SHA-256: 0.4 s for the converted weights, 538 MB.

    Args:
        path: the file.
        advance: is told which part has been read, from 0 to 1.
    """
    digest, size, done = hashlib.sha256(), max(1, path.stat().st_size), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            advance(min(1.0, done / size))
    return digest.hexdigest()


def make_once(folder: Path, make: Callable[[Path, Path], None]) -> None:
    """Make a folder that is not there, in one process at a time; it appears whole or not at all.

    Args:
        folder: in the cache.
        make: is given an empty folder to work in and the folder to write, which does not exist; what it leaves in the
            first is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():  # by another process that was first
            return
        prefix = f".making-{folder.name}-"
        for left in folder.parent.glob(f"{prefix}*"):  # by a process that was killed: none other is at work on it
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as scratch:
            made = Path(scratch) / "model"
            make(Path(scratch), made)
            write_inventory(made)
            made.rename(folder)


def write_inventory(folder: Path) -> None:
    """Write the sizes and hashes of a folder's files beside them."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    (folder / _INVENTORY).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")


def require_as_made(folder: Path) -> None:
    """Refuse a folder whose files are not those of its inventory: sizes first, then hashes (0.4 s of 1.3 for a load).

    Raises:
        OSError: saying what differs, and what to do.
    """
    wrong = _difference(folder)
    if wrong is not None:
        raise not_as_made(folder, wrong)


def not_as_made(folder: Path, wrong: str) -> OSError:
    """The error for a folder of the cache that is not what it is taken for."""
    return OSError(f"{shown(folder)} is not as it was made: {wrong}; remove {shown(folder)} and run again.")


def _difference(folder: Path) -> str | None:
    try:
        expected = json.loads((folder / _INVENTORY).read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in expected.items()}
        hashes = {name: entry["sha256"] for name, entry in expected.items()}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return f"it has no {_INVENTORY} that can be read"
    # Hidden files are a file manager's; any other may be read with the model.
    there = {path.name: path for path in folder.iterdir() if not path.name.startswith(".") and path.name != _INVENTORY}
    if sizes.keys() != there.keys():
        return f"{shown(sorted(sizes.keys() ^ there.keys())[0])} is missing or was added"
    for name, path in there.items():
        if not path.is_file() or path.stat().st_size != sizes[name]:
            return f"{name} has another size"
    for name, path in there.items():
        if sha256_of(path) != hashes[name]:
            return f"{name} has another content"
    return None
