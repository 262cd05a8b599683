"""Tokens as text that can be seen: nothing in them moves, hides or breaks what stands around them."""

import unicodedata

_SIGNS = {" ": "␣", "\n": "⏎", "\r": "↵", "\t": "⇥", "\x1b": "␛", "\u00a0": "⍽"}


def visible(text: str) -> str:
    """A token with its white space as signs, and what has no shape of its own by its code: ‹U+202E›."""
    return "".join(_SIGNS.get(c) or (c if _has_a_shape(c) else f"‹U+{ord(c):04X}›") for c in text)


def plain(text: str) -> str:
    """A name or a sentence, likewise, with its spaces as they are."""
    return visible(text).replace("␣", " ")


def _has_a_shape(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
