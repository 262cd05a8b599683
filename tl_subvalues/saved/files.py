"""Where documents are kept: a folder, or the same in a .zip file.

    trace.json     the document, all that `open_trace` reads
    page.html      the same to look at
    *.parquet      its tables, for pandas and others

Files of others are read as what they claim to be or refused: nothing is unpacked, run, or believed of their sizes.
"""

import io
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tl_subvalues.errors import shown
from tl_subvalues.paths import named_path
from tl_subvalues.saved.document import Document, checked
from tl_subvalues.saved.packing import unpacked

JSON = "trace.json"
PAGE = "page.html"
# A trace of SmolLM2-135M with the top 300 of everything takes 3 MB.
LARGEST = 256 << 20


def write(path: Any, document: Document, page: str) -> None:
    """A new folder, or a .zip file; a .zip, or a folder of an earlier trace, that is there is replaced.

    Raises:
        ValueError: for a path that something else is at, or in a folder that does not exist.
    """
    target = require_target(path)
    if target.suffix == ".zip":
        _write_zip(target, document, page)
        return
    target.mkdir(exist_ok=True)
    for name, content in _files(document, page):
        (target / name).write_bytes(content)


def require_target(path: Any) -> Path:
    """Where a trace may be written to.

    Raises:
        ValueError: for a path that something else is at, or in a folder that does not exist.
    """
    target = named_path(path).absolute()
    if not target.parent.is_dir():
        raise ValueError(f"{shown(path)}: the folder to write into does not exist.")
    if target.suffix == ".zip":
        if target.is_dir():
            raise ValueError(f"{shown(path)}: is a folder; give a name for a .zip file.")
    elif target.exists() and not (target.is_dir() and ((target / JSON).is_file() or not any(target.iterdir()))):
        raise ValueError(f"{shown(path)}: is there and is no saved trace; give a new name, or one ending in .zip.")
    return target


def read(path: Any) -> Document:
    """The document of a folder or a .zip file, checked.

    Raises:
        ValueError: if it is none, in one sentence.
    """
    target = named_path(path)
    if not target.exists():
        raise ValueError(f"{shown(path)}: there is no such file or folder.")
    try:
        content = _read_folder(target) if target.is_dir() else _read_zip(target)
        return checked(_parsed(content))
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {shown(error)}") from error


def _files(document: Document, page: str) -> Iterator[tuple[str, bytes]]:
    yield JSON, json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    yield PAGE, page.encode()
    for name, table in document["tables"].items():
        buffer = io.BytesIO()
        unpacked(table).to_parquet(buffer, index=False)
        yield f"{name}.parquet", buffer.getvalue()


def _write_zip(target: Path, document: Document, page: str) -> None:
    """In one step: a file that is there is whole."""
    unfinished = target.with_name(f".{secrets.token_hex(8)}.unfinished")
    try:
        with zipfile.ZipFile(unfinished, "x", zipfile.ZIP_DEFLATED) as archive:
            for name, content in _files(document, page):
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # no date: the same bytes
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _read_folder(folder: Path) -> bytes:
    file = folder / JSON
    if not file.is_file():
        raise ValueError(f"it is no saved trace: there is no {JSON} in it.")
    with file.open("rb") as opened:
        return _limited(opened.read(LARGEST + 1))


def _read_zip(file: Path) -> bytes:
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.namelist().count(JSON) != 1:
                raise ValueError(f"it is no saved trace: there is no {JSON} in it.")
            # Of other methods zipfile unpacks whole blocks, however little is asked for.
            if archive.getinfo(JSON).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"its {JSON} is packed by another method than deflate; pack it again by `zip`.")
            with archive.open(JSON) as opened:
                return _limited(opened.read(LARGEST + 1))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError("it is no saved trace: neither a folder nor a .zip file that can be read.") from error


def _limited(content: bytes) -> bytes:
    if len(content) > LARGEST:
        raise ValueError(f"its {JSON} is larger than {LARGEST >> 20} MB.")
    return content


def _parsed(content: bytes) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (RecursionError, ValueError) as error:  # broken text, NaN, numbers of thousands of digits among them
        raise ValueError(f"its {JSON} is no JSON that can be read.") from error
