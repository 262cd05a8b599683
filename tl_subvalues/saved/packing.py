"""Tables in JSON and back, column by column, with the dtypes that pandas had for them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

# "json" holds lists, such as the heads that carried an edge.
DTYPES = ("int64", "Int64", "float32", "float64", "bool", "object", "str", "json")


def packed(table: pd.DataFrame) -> dict[str, Any]:
    """A table as {"columns": {name: {"dtype", "values"}}, "attrs"}: numbers to the bit, a missing one as null."""
    return {"columns": {str(name): _column(table[name]) for name in table}, "attrs": plain(dict(table.attrs))}


def unpacked(table: Mapping[str, Any]) -> pd.DataFrame:
    """The table that was packed."""
    made = pd.DataFrame({name: _series(column) for name, column in table["columns"].items()})
    made.attrs = dict(table["attrs"])
    return made


def head(table: Mapping[str, Any], top: int) -> dict[str, Any]:
    """The first rows of a packed table."""
    columns = {name: {**column, "values": column["values"][:top]} for name, column in table["columns"].items()}
    return {"columns": columns, "attrs": table["attrs"]}


def n_rows(table: Mapping[str, Any]) -> int:
    """Rows of a packed table."""
    return max((len(column["values"]) for column in table["columns"].values()), default=0)


def labels_of_packed(table: Mapping[str, Any]) -> list[str]:
    """The labels of a packed table."""
    return list(table["columns"]["label"]["values"])


def plain(value: Any) -> Any:
    """Numpy's numbers as Python's, what is missing as None; an infinite number, which JSON lacks, as its name."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if value is pd.NA or value is None:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value


def _column(values: pd.Series) -> dict[str, Any]:
    cells = plain(values.tolist())
    dtype = str(values.dtype)
    if dtype == "object" and any(isinstance(cell, list | dict) for cell in cells):
        dtype = "json"
    return {"dtype": dtype if dtype in DTYPES else "object", "values": cells}


def _series(column: Mapping[str, Any]) -> pd.Series:
    dtype, values = column["dtype"], column["values"]
    if dtype in ("float32", "float64"):
        return pd.Series([math.nan if value is None else float(value) for value in values], dtype=dtype)
    if dtype == "str":  # pandas 2 has no such dtype: its texts are objects
        return pd.Series(values, dtype=None if values else object)
    return pd.Series(values, dtype=object if dtype == "json" else dtype)
