"""Errors and warnings of this package, beside ValueError, KeyError and OSError; and how they show what others wrote."""

import reprlib
from typing import Any

# Characters of a message on a screen: beyond what our own need, short of what fills it.
LONGEST = 1000
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring = 2, 60


class UnsupportedModelError(ValueError):
    """A model, or a block of it, that cannot be decomposed exactly: which, why, and the way out."""


class UnknownSourcesError(UnsupportedModelError):
    """A layer whose heads cannot be told apart by source position, for a gate or a hook acts behind the mixing."""


class SubvaluesWarning(UserWarning):
    """What this package warns of; the kinds that can be told apart are below."""


class UnknownWordsWarning(SubvaluesWarning):
    """Words of a text that a model's vocabulary lacks, by name."""


class OtherModelWarning(SubvaluesWarning):
    """TransformerLens computes another model than Hugging Face does, so that is what is taken apart."""


class LeadingSpaceWarning(SubvaluesWarning):
    """A target without its leading space, where the word with one is far likelier; or a prompt that ends with it."""


def shown(text: Any, limit: int = 200) -> str:
    """Text of somebody else's (a file's name, what a file holds) as a message may show it: in one line, and short.

    What a terminal would obey rather than show is escaped; of text longer than `limit` the middle is left out.
    """
    whole = str(text)
    cut = whole if len(whole) <= limit else f"{whole[: limit // 2]} … {whole[-(limit // 2) :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def shown_value(value: Any) -> str:
    """A value's repr as a message may show it: of a container only its outside, of a long text its two ends."""
    return shown(_REPR.repr(value))


def told(error: BaseException) -> str:
    """Another library's exception in one line: its kind, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shown(lines[0], 300)}" if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    """An error in one line of limited length: its message without the quotes that KeyError puts around it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return shown(text.strip().splitlines()[0], LONGEST) if text.strip() else type(error).__name__
