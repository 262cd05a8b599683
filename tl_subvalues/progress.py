"""Progress as it is shown: who watches, and lines that say what is worked through and how far."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_WATCHER: ContextVar[Callable[[str], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watching(watcher: Callable[[str], None]) -> Iterator[None]:
    """Tell `watcher` in this thread what is worked on, again and again; where it raises, the work ends there."""
    before = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(before)


def step(what: str) -> None:
    """Say what is worked on now to who watches this thread, if anybody does."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(what)


def watched() -> bool:
    """Whether someone is likely to see a progress bar: in a terminal or a notebook."""
    return _in_a_notebook() or bool(getattr(sys.stderr, "isatty", lambda: False)())


def _in_a_notebook() -> bool:
    # A kernel runs this process; that ipykernel has been imported does not say so.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def bar(what: str, total: int, unit: str, *, show: bool | None) -> Any:
    """A bar of tqdm's over things that are all worked through; it is gone when done. `show` None is where watched."""
    shown = watched() if show is None else show
    return tqdm(total=total, desc=what, unit=f" {unit}", disable=not shown, leave=False)


@contextmanager
def search_line(what: str, total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A line that says how many candidates of a search were evaluated; it ends with "exact", and is gone then.

    No bar: how many will have to be evaluated is not known before they were, and it is mostly a small part of all.

    Args:
        what: the candidates are called.
        total: how many there are.
        show: whether to show it.

    Yields:
        What is told how many were evaluated by now.
    """
    form = f"{what}: {{}} of {total:,} evaluated{{}}"
    desc = form.format(0, "")
    with tqdm(desc=desc, total=total, bar_format="{desc} [{elapsed}]", disable=not show, leave=False) as line:
        number = 0

        def evaluated(now: int) -> None:
            nonlocal number
            number = now
            step(f"{what}: {now:,} of {total:,} evaluated")
            line.set_description_str(form.format(f"{number:,}", ""))

        yield evaluated
        line.total = line.n = number  # in a notebook, what ends before its total is red
        line.set_description_str(form.format(f"{number:,}", ", exact"))
