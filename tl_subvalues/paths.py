"""Paths as users write them, for what is written and what is read."""

from pathlib import Path
from typing import Any

from tl_subvalues.errors import shown


def named_path(path: Any) -> Path:
    """The file or folder that a path names, `~` expanded.

    Raises:
        ValueError: for an empty path, one that no file can have, and the home of nobody.
    """
    text = str(path)
    if not text:
        raise ValueError("the path is empty; name a file or a folder.")
    if "\0" in text:
        raise ValueError(f"{shown(text)}: no file has a NUL character in its name; name another.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{shown(text)}: there is no such user; write the folder out, or ./{shown(text)}.") from error
