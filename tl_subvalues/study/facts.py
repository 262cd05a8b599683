"""Facts: prompts and their targets, from a table or a CSV file, every row checked before anything runs.

A target, and what it is measured against, is one word or several: in a cell of a CSV file a JSON list, [" Paris",
" Rome"]; in a DataFrame's a list. A word that begins with a bracket itself is written as a list of one.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from tl_subvalues.errors import shown
from tl_subvalues.model_view import ModelView, prompt_tokens
from tl_subvalues.readout.asked import REST, Asked, asked, words_in
from tl_subvalues.readout.targets import Measure

COLUMNS = ("prompt", "target")
_SHOWN = 5
# What spreadsheets write in countries where the comma is in numbers, and what else files are separated by.
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Row:
    """One row as it was given. `where` says where it stands: "line 3" of a file, "row 2" of a table."""

    where: str
    columns: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Fact:
    """A prompt and what should follow it. `where` says where it stands, as a row's does."""

    tokens: Int[Tensor, " pos"]
    asked: Asked
    columns: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Facts:
    """The facts that can be used, all of one measure, and what was wrong with the others ("line 3: …")."""

    facts: list[Fact]
    skipped: list[str]

    @property
    def measure(self) -> Measure:
        """What all their targets are measured by."""
        return self.facts[0].asked.measure


def read_rows(source: Any) -> list[Row]:
    """The rows of a DataFrame or of a CSV file (UTF-8, one header line).

    Raises:
        ValueError: if it is neither, cannot be read as text, or lacks a column.
        OSError: if the file cannot be opened.
    """
    if isinstance(source, pd.DataFrame):
        _require_columns([str(name) for name in source.columns], "the table")
        records = source.to_dict(orient="records")
        return [Row(f"row {number}", {str(k): v for k, v in record.items()}) for number, record in enumerate(records)]
    if not isinstance(source, (str, Path)):
        raise ValueError(f"facts are a DataFrame or the path of a CSV file, got {type(source).__name__}.")
    path = Path(source)
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            return list(_csv_rows(file, str(source)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{shown(source)} cannot be read as CSV text in UTF-8: {error}") from error


def _csv_rows(file: Any, name: str) -> Iterator[Row]:
    numbered = _numbered(csv.reader(file), name)
    _, header = next(numbered, (1, []))
    _require_columns(header, shown(name))
    for line, fields in numbered:
        if not fields:
            continue
        wrong = None if len(fields) == len(header) else f"{len(fields)} fields where the header has {len(header)}"
        yield Row(f"line {line}", dict(zip(header, fields, strict=False)), wrong)


def _numbered(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV reader, each with the number of the line where it begins (a quoted cell may have several).

    Raises:
        ValueError: for what the csv module does not read, naming that line.
    """
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            limit = csv.field_size_limit()
            long = f"a cell of over {limit:,} characters; is a quotation mark left open?"
            raise ValueError(
                f"{shown(name)}, line {line}: {long if 'field limit' in str(error) else f'is not CSV ({error}).'}"
            ) from error


def _require_columns(names: list[str], what: str) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        for separator, called in _OTHER_SEPARATORS.items():
            if set(COLUMNS) <= {name.strip('" ') for name in ",".join(names).split(separator)}:
                raise ValueError(
                    f"{what} separates its columns by {called} where commas are needed; save it with commas."
                )
        raise ValueError(f"{what} has no column {' and '.join(missing)}; facts have the columns prompt and target.")


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
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error is 'stop' or 'skip', got {on_error!r}.")
    facts, problems = [], []
    for row in rows:
        try:
            facts.append(_fact(view, row, prepend_bos))
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
    if problems and on_error == "stop":
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise ValueError(
            f"{'; '.join(problems[:_SHOWN])}{more}; mend these rows, or leave them out by on_error='skip'."
        )
    if not facts:
        raise ValueError(f"no facts: {problems[0] if problems else 'there are no rows'}.")
    first = {fact.asked.measure: fact.where for fact in reversed(facts)}
    if len(first) > 1:
        raise ValueError(
            f"{first['log_prob_diff']} has an against and {first['log_prob']} has none: differences and "
            "log-probabilities have no mean together; give every row one, or none."
        )
    return Facts(facts, problems)


def _fact(view: ModelView, row: Row, prepend_bos: bool | None) -> Fact:
    if row.problem:
        raise ValueError(row.problem)
    for name in COLUMNS:
        if _empty(row.columns[name]):
            raise ValueError(f"the {name} is empty")
    prompt, target, against = (row.columns.get(name) for name in (*COLUMNS, "against"))
    wanted = asked(view, words_in(target), None if _empty(against) else words_in(against))
    return Fact(prompt_tokens(view, prompt, prepend_bos), wanted, row.columns, row.where)


def check_words(rows: Sequence[Row], check: Callable[[list[str]], None]) -> None:
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
