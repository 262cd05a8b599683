"""One labelled bar over the stages in which a model comes, in place of the bars of the libraries that do the work."""

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm


class StageBar:
    """A bar from 0% to 100% over stages of different length, with the stage's name before it and a running clock."""

    def __init__(self, title: str, stages: Mapping[str, float], *, show: bool) -> None:
        """Args: title, what comes; stages, the names in order and how long each takes beside the others; show."""
        self._title, self._stages = title, dict(stages)
        self._start = self._length = 0.0
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"
        self._bar = tqdm(total=100, desc=title, bar_format=form, disable=not show, leave=False)
        self._closed = threading.Event()
        if show:
            threading.Thread(target=self._run_the_clock, daemon=True).start()

    def _run_the_clock(self) -> None:
        # Most of a conversion says nothing of how far it is: 15 s of 20.
        while not self._closed.wait(0.5):
            self._bar.refresh()

    def begin(self, stage: str) -> None:
        """Go on to a stage, those before it being done or not needed."""
        names = list(self._stages)
        before = sum(self._stages[name] for name in names[: names.index(stage)])
        whole = sum(self._stages.values())
        self._start, self._length = 100 * before / whole, 100 * self._stages[stage] / whole
        self._bar.set_description_str(f"{self._title}: {stage}", refresh=False)
        self.advance(0.0)
        self._bar.refresh()

    def advance(self, part: float) -> None:
        """Say which part of the stage is done, from 0 to 1."""
        self._bar.n = round(self._start + part * self._length)

    def close(self) -> None:
        """Take the bar away."""
        self._closed.set()
        self._bar.close()


@contextlib.contextmanager
def hosts_bars_hidden(advance: Callable[[float], None] | None = None) -> Iterator[None]:
    """Without the bars of transformers and of its reader of GGUF files, which shows one wherever it runs.

    Args:
        advance: is told instead which part of a GGUF file's tensors has been read.
    """
    from transformers.utils import logging

    reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    shown, theirs = logging.is_progress_bar_enabled(), getattr(reader, "tqdm", None)
    logging.disable_progress_bar()
    if theirs is not None:
        reader.tqdm = lambda tensors, **_: _counted(tensors, advance)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if theirs is not None:
            reader.tqdm = theirs  # type: ignore[attr-defined]
        if shown:
            logging.enable_progress_bar()


def _counted(tensors: Iterable[Any], advance: Callable[[float], None] | None) -> Iterator[Any]:
    everything = list(tensors)
    for number, tensor in enumerate(everything, 1):
        yield tensor
        if advance is not None:
            advance(number / len(everything))
