"""Rows of facts as they are given: a DataFrame, a CSV, Parquet or JSON file, a dataset of Hugging Face, one by one.

What stands in a row is not looked at here, but for its layout; `facts` makes token ids of it.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tl_subvalues.errors import shown, told
from tl_subvalues.paths import named_path
from tl_subvalues.study.layouts import COLUMNS, Layout, layout_of

# What spreadsheets write in countries where the comma is in numbers, and what else files are separated by.
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
# A dataset's name on the hub, and one of its splits.
_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".json", *_JSON_LINES)
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was given. `where` says where it stands: "line 3" of a file, "row 2" of a table."""

    where: str
    columns: Mapping[str, Any]
    problem: str | None = None
    number: int = 0  # among all rows


@dataclass(frozen=True)
class _Table:
    """Rows before their layout: what the columns are, as far as that is known, and the rows."""

    what: str
    columns: list[str] | None
    rows: Iterable[Row]


def read_rows(source: Any, columns: Mapping[str, str] | None = None, layout: str | None = None) -> list[Row]:
    """All rows of a source; see `stream_rows`."""
    return list(stream_rows(source, columns, layout))


def stream_rows(source: Any, columns: Mapping[str, str] | None = None, layout: str | None = None) -> Iterator[Row]:
    """The rows of a source, of which no more is held than a block, but of a DataFrame and of a .json file.

    Args:
        source: a DataFrame; a file: Parquet, JSON lines (.jsonl, .ndjson), JSON (an array of objects), CSV otherwise
            (UTF-8, one header line); a dataset of the library `datasets`, a folder where one was saved, or a name on
            the Hugging Face hub ("NeelNanda/counterfact-tracing", with a split after a colon if need be).
        columns: what the columns prompt, target and against are called there.
        layout: "counterfact" or "lama".

    Raises:
        ValueError: if it is none of these, cannot be read, or lacks a column.
        OSError: if the file cannot be opened.
    """
    form = layout_of(columns, layout)
    table = _table(source)
    if table.columns is not None:
        _require_columns(table.columns, form, table.what)
    return _in_form(table, form)


def _in_form(table: _Table, form: Layout) -> Iterator[Row]:
    checked = table.columns is not None
    for number, row in enumerate(table.rows):
        if not checked and row.problem is None:
            _require_columns(list(row.columns), form, table.what)
            checked = True
        if row.problem is not None:
            yield replace(row, number=number)
            continue
        try:
            yield Row(row.where, form(row.columns), None, number)
        except ValueError as error:
            yield replace(row, number=number, problem=str(error))


def _require_columns(names: list[str], form: Layout, what: str) -> None:
    missing = form.missing(names)
    if not missing:
        return
    for separator, called in _OTHER_SEPARATORS.items():
        if set(COLUMNS) <= {name.strip('" ') for name in ",".join(names).split(separator)}:
            raise ValueError(f"{what} separates its columns by {called} where commas are needed; save it with commas.")
    raise ValueError(f"{what} has no column {' and '.join(map(shown, missing))}; {form.needs}.")


def _table(source: Any) -> _Table:
    if isinstance(source, pd.DataFrame):
        return _Table("the table", [str(name) for name in source.columns], _rows("row", _records(source)))
    if type(source).__module__.partition(".")[0] == "datasets":
        return _of_dataset(source, "the dataset")
    if not isinstance(source, (str, Path)):
        raise ValueError(
            "facts are a DataFrame, a dataset of Hugging Face, or the path of a CSV, Parquet or JSON file, got "
            f"{type(source).__name__}."
        )
    path = named_path(source)
    if path.is_dir():
        return _of_dataset(_read(source, lambda datasets: _saved(datasets, path)), shown(source))
    suffix = path.suffix.lower()
    if isinstance(source, str) and _NAME.fullmatch(source) and suffix not in _SUFFIXES and not path.exists():
        name, _, split = source.partition(":")
        hub = _read(source, lambda datasets: datasets.load_dataset(name, split=split or None, streaming=True))
        return _of_dataset(hub, shown(source))
    if not path.exists():
        raise FileNotFoundError(f"{shown(source)}: there is no such file.")
    if suffix == ".parquet":
        return _of_parquet(path, shown(source))
    if suffix in _JSON_LINES:
        return _Table(shown(source), None, _json_lines(path, shown(source)))
    if suffix == ".json":
        return _of_json(path, shown(source))
    rows = _csv_rows(path, str(source))
    return _Table(shown(source), next(rows), rows)


def _rows(word: str, records: Iterable[Any]) -> Iterator[Row]:
    for number, record in enumerate(records):
        if isinstance(record, Mapping):
            yield Row(f"{word} {number}", {str(name): value for name, value in record.items()})
        else:
            yield Row(f"{word} {number}", {}, f"a {type(record).__name__} where an object is needed")


def _records(table: pd.DataFrame) -> Iterator[Mapping[Any, Any]]:
    for start in range(0, len(table), _BLOCK):
        yield from table.iloc[start : start + _BLOCK].to_dict(orient="records")


def _csv_rows(path: Path, name: str) -> Iterator[Any]:
    """The header first, then the rows."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            numbered = _numbered(csv.reader(file), name)
            _, header = next(numbered, (1, []))
            yield header
            for line, fields in numbered:
                if not fields:
                    continue
                fits = len(fields) == len(header)
                wrong = None if fits else f"{len(fields)} fields where the header has {len(header)}"
                yield Row(f"line {line}", dict(zip(header, fields, strict=False)), wrong)
        except UnicodeDecodeError as error:
            raise ValueError(f"{shown(name)} cannot be read as CSV text in UTF-8: {error}") from error


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


def _of_parquet(path: Path, what: str) -> _Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.open("rb").close()  # a file that is not there is an OSError that names it
    try:
        columns = list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{what} cannot be read as Parquet: {told(error)}") from error

    def records() -> Iterator[Any]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BLOCK):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{what} cannot be read as Parquet: {told(error)}") from error

    return _Table(what, columns, _rows("row", records()))


def _json_lines(path: Path, what: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        lines = enumerate(file, start=1)
        try:
            for number, line in lines:
                if line.strip():
                    yield _json_row(line, f"line {number}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} cannot be read as JSON lines in UTF-8: {error}") from error


def _json_row(line: str, where: str) -> Row:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(where, {}, f"is not JSON ({error})")
    if not isinstance(record, dict):
        return Row(where, {}, f"a {type(record).__name__} where an object is needed")
    return Row(where, record)


def _of_json(path: Path, what: str) -> _Table:
    """A file of JSON: an array, which is read whole, or lines."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            is_array = file.read(_BLOCK).lstrip().startswith("[")
            file.seek(0)
            content = json.loads(file.read()) if is_array else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{what} cannot be read as JSON: {error}") from error
    return _Table(what, None, _json_lines(path, what) if content is None else _rows("row", content))


def _read(source: Any, read: Callable[[Any], Any]) -> Any:
    try:
        import datasets

        return read(datasets)
    except ValueError as error:
        raise ValueError(f"{shown(source)}: {shown(str(error).splitlines()[0], 300)}") from error
    except Exception as error:  # no connection, no such dataset, a script: each of another library's kinds
        raise ValueError(
            f"{shown(source)} is neither a file nor a dataset that can be read ({told(error)}); check name and "
            "connection."
        ) from error


def _saved(datasets: Any, folder: Path) -> Any:
    """A dataset that `save_to_disk` wrote, or a folder of data files as on the hub."""
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(str(folder))
    return datasets.load_dataset(str(folder), streaming=True)


def _of_dataset(data: Any, what: str) -> _Table:
    """The rows of a dataset; of one with several splits, none is taken for the user."""
    if isinstance(data, Mapping):
        if len(data) != 1:
            raise ValueError(
                f"{what} has the splits {', '.join(map(str, data))}; pass one of them, such as "
                "datasets.load_dataset(...)['train'], or NAME:train."
            )
        (data,) = data.values()
    columns = getattr(data, "column_names", None)
    return _Table(what, None if columns is None else list(columns), _rows("row", data))
