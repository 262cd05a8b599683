"""What TransformerLens, transformers and torch call deprecated, while code of a package is calling them."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

DEPRECATED = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def line_on_the_stack(package: Path) -> str | None:
    """The innermost line of a package that is being run, None where there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if package in Path(frame.f_code.co_filename).parents:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class Listener(logging.Handler):
    """Keeps what is said to be deprecated below a line of the package: by warnings, or in a log."""

    def __init__(self, package: Path) -> None:
        super().__init__(logging.WARNING)
        self.package, self.heard = package, []

    def note(self, message: str) -> None:
        line = line_on_the_stack(self.package)
        if line is not None:
            self.heard.append(f"{line} {message}")

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage().lower():
            self.note(record.getMessage())

    def show(self, message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        """In place of `warnings.showwarning`; what Ray says of its own settings to itself is none of ours."""
        if issubclass(category, DEPRECATED) and "/site-packages/ray/" not in filename:
            self.note(f"{category.__name__}: {message}")


@contextlib.contextmanager
def heard_below(package: Path) -> Iterator[list[str]]:
    """Listen for a while: 'file:line message' of everything deprecated that the package's code ran into."""
    listener, root, theirs = Listener(package), logging.getLogger(), logging.getLogger("transformers")
    handlers, level, propagate = theirs.handlers, theirs.level, theirs.propagate
    transformers.utils.logging.warning_once.cache_clear()  # what is said once a process may be said below us first
    with warnings.catch_warnings():
        for category in DEPRECATED:
            warnings.simplefilter("always", category)
        warnings.showwarning = listener.show
        root.addHandler(listener)
        theirs.handlers, theirs.level, theirs.propagate = [listener], logging.WARNING, False  # heard once
        try:
            yield listener.heard
        finally:
            theirs.handlers, theirs.level, theirs.propagate = handlers, level, propagate
            root.removeHandler(listener)
