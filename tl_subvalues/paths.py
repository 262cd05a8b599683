"""Paths as users write them, for what is written and what is read."""

import errno
import os
from pathlib import Path
from typing import Any

from tl_subvalues.errors import shown


def named_path(path: Any) -> Path:
    """The file or folder that a path names, `~` expanded.

    Raises:
        ValueError: for what is no path, an empty one, one that no file can have, and the home of nobody.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise ValueError(f"a path is text or a pathlib.Path, got {type(path).__name__}.")
    if not text:
        raise ValueError("the path is empty; name a file or a folder.")
    if "\0" in text:
        raise ValueError(f"{shown(text)}: no file has a NUL character in its name; name another.")
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{shown(text)}: there is no such user; write the folder out, or ./{shown(text)}.") from error
    try:
        os.lstat(os.fsencode(found))
    except UnicodeEncodeError as error:
        readable = shown(text.encode(errors="backslashreplace").decode())
        raise ValueError(f"{readable}: no file has half a character in its name; name another.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{shown(text)}: that is too long for a file's name here; name another.") from error
    return found
