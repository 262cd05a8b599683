"""Tables as files."""

from pathlib import Path
from typing import Any

import pandas as pd


def require_writable_table(out: Any) -> None:
    """Refuse, before the work, an output that `write_table` could not write.

    Raises:
        ValueError: for another suffix than .parquet and .csv, or a folder that does not exist.
    """
    if out is None:
        return
    path = Path(out)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: the output is a .parquet or a .csv file.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: not a file, or the folder to write into does not exist.")


def write_table(table: pd.DataFrame, out: Any) -> None:
    """A DataFrame as Parquet or CSV, in one step: a file that is there is whole."""
    path = Path(out)
    unfinished = path.with_name(f".{path.name}.unfinished")
    if path.suffix == ".parquet":
        table.to_parquet(unfinished, index=False)
    else:
        table.to_csv(unfinished, index=False)
    unfinished.replace(path)
