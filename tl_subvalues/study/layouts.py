"""What columns are called, and where public collections of facts have them: CounterFact and LAMA."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tl_subvalues.errors import shown, shown_value

COLUMNS = ("prompt", "target")
_MAPPED = (*COLUMNS, "against")
Record = Mapping[str, Any]
_MASK = re.compile(r"\[MASK\]|\[Y\]")


@dataclass(frozen=True)
class Layout:
    """How a record becomes one with the columns prompt, target and, if need be, against; other columns stay."""

    columns: Mapping[str, str]
    layout: str | None = None

    def missing(self, names: list[str]) -> list[str]:
        """What columns of these names lack."""
        if self.layout is not None:
            return [name for name in _NEEDED[self.layout] if name not in names]
        return [self.columns.get(name, name) for name in self._wanted() if self.columns.get(name, name) not in names]

    @property
    def needs(self) -> str:
        """What a record has to have, in words."""
        if self.layout is not None:
            return f"the layout {self.layout} has {' and '.join(_NEEDED[self.layout])}"
        if self.columns:
            return f"columns={dict(self.columns)!r} asks for it"
        return "facts have the columns prompt and target"

    def _wanted(self) -> list[str]:
        return [*COLUMNS, *(name for name in self.columns if name not in COLUMNS)]

    def __call__(self, record: Record) -> Record:
        """A record's columns.

        Raises:
            ValueError: saying what it lacks.
        """
        if self.layout is not None:
            record = {**record, **_LAYOUTS[self.layout](record)}
        for name in self._wanted():
            if self.columns.get(name, name) not in record:
                raise ValueError(f"has no {shown(self.columns.get(name, name))}")
        return {**record, **{name: record[own] for name, own in self.columns.items()}}


def layout_of(columns: Mapping[str, str] | None = None, layout: str | None = None) -> Layout:
    """The layout that a user names.

    Raises:
        ValueError: for a column that facts do not have, or a layout that is not known.
    """
    if layout is not None and layout not in _LAYOUTS:
        raise ValueError(f"layout is one of {', '.join(map(repr, _LAYOUTS))}, got {shown_value(layout)}.")
    columns = {} if columns is None else columns
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for pair in columns.items() for name in pair):
        raise ValueError(f"columns says what columns are called, as in {{'prompt': 'question'}}, got {columns!r}.")
    unknown = [name for name in columns if name not in _MAPPED]
    if unknown:
        raise ValueError(f"columns maps {', '.join(_MAPPED)} to a column of the facts, got {shown_value(unknown[0])}.")
    return Layout(dict(columns), layout)


def _counterfact(record: Record) -> Record:
    """A record of CounterFact (Meng et al. 2022): the prompt with its subject in place, the true target.

    Also subject, relation and target_new, the false one.
    """
    asked = record.get("requested_rewrite")
    if isinstance(asked, list) and len(asked) == 1:  # as some copies have it
        (asked,) = asked
    if not isinstance(asked, Mapping):
        raise ValueError("has no requested_rewrite")
    prompt, subject = (_text(asked, name) for name in ("prompt", "subject"))
    if "{}" not in prompt:
        raise ValueError("its prompt has no place {} for the subject")
    true, new = (_text(asked.get(name), "str", name) for name in ("target_true", "target_new"))
    return {
        "prompt": prompt.replace("{}", subject),
        "target": _spaced(true),
        "target_new": _spaced(new),
        "subject": subject,
        "relation": asked.get("relation_id"),
    }


def _lama(record: Record) -> Record:
    """A record of LAMA (Petroni et al. 2019): what stands before the object, and the object.

    The template is filled where there is one ("[X] was born in [Y] ."), else the first masked sentence is taken. A
    model that reads from left to right sees nothing after the object, so nothing but punctuation may stand there.
    """
    target = _text(record, "obj_label")
    template = record.get("template")
    if isinstance(template, str) and template:
        sentence = template.replace("[X]", _text(record, "sub_label"))
    else:
        sentence = _masked(record)
    before, *after = _MASK.split(sentence)
    if len(after) != 1:
        raise ValueError("has no sentence with one [Y] or [MASK]")
    if re.search(r"\w", after[0]):
        raise ValueError(f"words follow the object: {shown(after[0].strip(), 60)!r}")
    if not before.strip():
        raise ValueError("nothing stands before the object")
    return {"prompt": before.rstrip(), "target": _spaced(target), "relation": record.get("predicate_id")}


def _masked(record: Record) -> str:
    """The first masked sentence, wherever the parts of LAMA have it."""
    evidences = record.get("evidences")
    nested = evidences[0] if isinstance(evidences, list) and evidences else {}
    for holder in (record, nested):
        for name in ("masked_sentence", "masked_sentences"):
            found = holder.get(name) if isinstance(holder, Mapping) else None
            found = found[0] if isinstance(found, list) and found else found
            if isinstance(found, str) and found:
                return found
    raise ValueError("has neither a template nor a masked sentence")


def _text(record: Any, name: str, called: str | None = None) -> str:
    found = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(found, str) or not found:
        raise ValueError(f"has no {called or name}")
    return found


def _spaced(word: str) -> str:
    """A word as it goes on after a prompt: with a leading space."""
    return f" {word.strip()}"


_LAYOUTS: dict[str, Callable[[Record], Record]] = {"counterfact": _counterfact, "lama": _lama}
_NEEDED = {"counterfact": ["requested_rewrite"], "lama": ["obj_label"]}
