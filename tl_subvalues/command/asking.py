"""What commands about one prompt share: their options, what of them is refused before a model is loaded, the trace."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tl_subvalues.command.options import BOS, DEVICE, DTYPE, MODEL, SCALE, options
from tl_subvalues.command.start_up import load, quieten, word_check
from tl_subvalues.errors import shown

_REST = "rest"


# A prompt, what is asked of it, and of which model.
asking_options = options(
    click.argument("prompt"),
    click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="WORD",
        help="The word to trace: text of exactly one token (mind its leading space). Repeat it for any of several "
        "words, leave it out for the model's most probable next token.",
    ),
    click.option(
        "--against",
        "others",
        multiple=True,
        metavar="WORD",
        help="Measure the target against this word, these words, or all others (rest): log p(target) - log p(against).",
    ),
    MODEL,
    click.option(
        "--position", default=-1, show_default=True, help="Where the target is predicted; -1 is the last token."
    ),
    SCALE,
    BOS,
    DEVICE,
    DTYPE,
)


@dataclass(frozen=True)
class Traced:
    """A trace, and what was chosen and said on the way."""

    trace: Any
    chosen: bool  # the target, by the model
    said: list[str]
    progress: bool  # someone watches


@dataclass(frozen=True)
class Question:
    """What the options say, refused where that takes no model."""

    prompt: str
    targets: tuple[str, ...]
    others: tuple[str, ...]
    name: str
    position: int
    scale: Any
    bos: bool | None
    device: str | None
    dtype: str

    def __post_init__(self) -> None:
        if _REST in self.others and len(self.others) > 1:
            raise ValueError(f"--against {_REST} is all words but the target; leave the others out.")
        if "" in (*self.targets, *self.others):
            raise ValueError("a word to trace is empty; pass text of one token.")
        twice = next((word for word, times in Counter((*self.targets, *self.others)).items() if times > 1), None)
        if twice is not None:
            both = twice in self.targets and twice in self.others
            where = "in the target and in what it is measured against" if both else "twice on one side"
            raise ValueError(f"{twice!r} is {where}; leave it out once.")

    def trace(self) -> Traced:
        """Load the model and trace the prompt."""
        # Imported here, so that --help and a mistyped option do not wait for transformers to load.
        from tl_subvalues.tracing.prompt import trace

        target, against = _words(self.targets), _words(self.others)
        word_check(self.name)([*self.targets, *(() if against == _REST else self.others)])
        progress = sys.stderr.isatty()
        said = quieten(progress)
        model = load(self.name, self.device, self.dtype)
        found = trace(
            model,
            self.prompt,
            target,
            against=against,
            position=self.position,
            scale=self.scale,
            prepend_bos=self.bos,
        )
        return Traced(found, target is None, said, progress)


def require_writable(file: str | None) -> None:
    """Refuse a file that could not be written, before the work; `-` is standard output.

    Raises:
        ValueError: for a folder, or a file in a folder that does not exist.
    """
    if file in (None, "-"):
        return
    path = Path(str(file)).resolve()
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{shown(str(file))}: not a file, or the folder to write into does not exist.")


def _words(given: tuple[str, ...]) -> Any:
    """One word, several, or None."""
    return None if not given else given[0] if len(given) == 1 else list(given)
