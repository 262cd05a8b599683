"""Facts: prompts and their targets, every row checked before anything runs.

A target, and what it is measured against, is one word or several: in a cell of a CSV file a JSON list, [" Paris",
" Rome"]; in a DataFrame's a list. A word that begins with a bracket itself is written as a list of one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from tl_subvalues.model_view import ModelView, prompt_tokens
from tl_subvalues.readout.asked import REST, Asked, asked, words_in
from tl_subvalues.readout.targets import Measure
from tl_subvalues.study.layouts import COLUMNS
from tl_subvalues.study.sources import Row

_SHOWN = 5


@dataclass(frozen=True)
class Fact:
    """A prompt and what should follow it. `where` says where it stands, as a row's does."""

    tokens: Int[Tensor, " pos"]
    asked: Asked
    columns: Mapping[str, Any]
    where: str
    number: int = 0  # of the row, among all


@dataclass(frozen=True)
class Facts:
    """The facts that can be used, all of one measure, and what was wrong with the others ("line 3: …")."""

    facts: list[Fact]
    skipped: list[str]

    @property
    def measure(self) -> Measure:
        """What all their targets are measured by."""
        return self.facts[0].asked.measure


def check_facts(view: ModelView, rows: list[Row], *, on_error: str = "stop", prepend_bos: bool | None = None) -> Facts:
    """Every row as token ids of this model; bad ones named by their place, all at once.

    Args:
        view: the model.
        rows: what `read_rows` gave.
        on_error: "stop" raises for bad rows, "skip" leaves them out and lists them.
        prepend_bos: as in `trace`.

    Raises:
        ValueError: for bad rows with on_error="stop", if none is left, and if some have an `against` and others have
            none, for what they are measured by cannot be put together.
    """
    problems: list[str] = []

    def tell(_: Row, problem: str) -> None:
        problems.append(problem)

    facts = list(good_facts(view, rows, tell, on_error=on_error, prepend_bos=prepend_bos))
    if not facts:
        raise ValueError(f"no facts: {problems[0] if problems else 'there are no rows'}.")
    return Facts(facts, problems)


def good_facts(
    view: ModelView,
    rows: Iterable[Row],
    tell: Callable[[Row, str], Any],
    *,
    on_error: str = "stop",
    prepend_bos: bool | None = None,
) -> Iterator[Fact]:
    """The facts one by one, of which none is kept, bad rows told (each with "line 3: …") and left out.

    Raises:
        ValueError: after the last row, as in `check_facts`.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error is 'stop' or 'skip', got {on_error!r}.")
    problems: list[str] = []
    first: dict[Measure, str] = {}
    bad = 0
    for row in rows:
        try:
            fact = _fact(view, row, prepend_bos)
        except ValueError as error:
            bad += 1
            problem = f"{row.where}: {error}"
            problems = [*problems, problem][:_SHOWN]
            tell(row, problem)
            continue
        first.setdefault(fact.asked.measure, fact.where)
        yield fact
    if bad and on_error == "stop":
        more = f" (and {bad - _SHOWN} more)" if bad > _SHOWN else ""
        raise ValueError(
            f"{'; '.join(problems)}{more}; mend these rows, or leave them out by on_error='skip' (in a terminal "
            "--on-error skip)."
        )
    if len(first) > 1:
        raise ValueError(
            f"{first['log_prob_diff']} has an against and {first['log_prob']} has none: differences and "
            "log-probabilities have no mean together; give every row one, or none."
        )


def _fact(view: ModelView, row: Row, prepend_bos: bool | None) -> Fact:
    if row.problem:
        raise ValueError(row.problem)
    for name in COLUMNS:
        if _empty(row.columns[name]):
            raise ValueError(f"the {name} is empty")
    prompt, target, against = (row.columns.get(name) for name in (*COLUMNS, "against"))
    wanted = asked(view, words_in(target), None if _empty(against) else words_in(against))
    return Fact(prompt_tokens(view, prompt, prepend_bos), wanted, row.columns, row.where, row.number)


def check_words(rows: Iterable[Row], check: Callable[[list[str]], None]) -> None:
    """Check the words that rows ask for, as far as they can be told without a model, and name the row of one refused.

    Raises:
        ValueError: what the check raises, with the row's place in front.
    """
    for row in rows:
        try:
            check([] if row.problem else _texts(row))
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error


def _texts(row: Row) -> list[str]:
    """The words that a row asks for as text, on both sides."""
    cells = [words_in(row.columns.get(name)) for name in ("target", "against")]
    words = [word for cell in cells for word in (cell if isinstance(cell, list) else [cell])]
    return [word for word in words if isinstance(word, str) and word not in ("", REST)]


def _empty(cell: Any) -> bool:
    """Whether nothing stands in a cell; an empty list is something, and refused as such."""
    return (
        cell is None
        or cell is pd.NA
        or (isinstance(cell, float) and cell != cell)
        or (isinstance(cell, str) and cell == "")
    )
