"""Facts: prompts and their targets, from a table or a CSV file, every row checked before anything runs."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from tl_subvalues.errors import shown
from tl_subvalues.model_view import ModelView, prompt_tokens, resolve_target

COLUMNS = ("prompt", "target")
_SHOWN = 5


@dataclass(frozen=True)
class Row:
    """One row as it was given. `place` says where it stands: "line 3" of a file, "row 2" of a table."""

    place: str
    columns: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Fact:
    """A prompt and the token that should follow it."""

    tokens: Int[Tensor, " pos"]
    target_id: int
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """The facts that can be used, and what was wrong with the others ("line 3: …")."""

    facts: list[Fact]
    skipped: list[str]


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
        raise ValueError(f"{what} has no column {' and '.join(missing)}; facts have the columns prompt and target.")


def check_facts(view: ModelView, rows: list[Row], *, on_error: str = "stop", prepend_bos: bool | None = None) -> Facts:
    """Every row as token ids of this model; bad ones named by their place, all at once.

    Args:
        view: the model.
        rows: what `read_rows` gave.
        on_error: "stop" raises for bad rows, "skip" leaves them out and lists them.
        prepend_bos: as in `trace`.

    Raises:
        ValueError: for bad rows with on_error="stop", and if none is left.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error is 'stop' or 'skip', got {on_error!r}.")
    facts, problems = [], []
    for row in rows:
        try:
            facts.append(_fact(view, row, prepend_bos))
        except ValueError as error:
            problems.append(f"{row.place}: {error}")
    if problems and on_error == "stop":
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise ValueError(
            f"{'; '.join(problems[:_SHOWN])}{more}; mend these rows, or leave them out by on_error='skip'."
        )
    if not facts:
        raise ValueError(f"no facts: {problems[0] if problems else 'there are no rows'}.")
    return Facts(facts, problems)


def _fact(view: ModelView, row: Row, prepend_bos: bool | None) -> Fact:
    if row.problem:
        raise ValueError(row.problem)
    prompt, target = row.columns["prompt"], row.columns["target"]
    for name, value in (("prompt", prompt), ("target", target)):
        if value is None or (isinstance(value, float) and value != value) or value == "":
            raise ValueError(f"the {name} is empty")
    return Fact(prompt_tokens(view, prompt, prepend_bos), resolve_target(view, target), row.columns)
