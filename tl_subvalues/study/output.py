"""Tables as files."""

from typing import Any, BinaryIO

import pandas as pd

from tl_subvalues.errors import shown
from tl_subvalues.files import write_whole
from tl_subvalues.paths import named_path


def require_writable_table(out: Any) -> None:
    """Refuse, before the work, an output that `write_table` could not write.

    Raises:
        ValueError: for another suffix than .parquet and .csv, a path that no file can have, or a folder that does not
            exist.
    """
    if out is None:
        return
    path = named_path(out)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{shown(path)}: the output is a .parquet or a .csv file.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{shown(path)}: not a file, or the folder to write into does not exist.")


def write_table(table: pd.DataFrame, out: Any) -> None:
    """A DataFrame as Parquet or CSV, in one step: a file that is there is whole, also where two runs write it.

    What stands in its place is replaced; a link stays, and what it leads to is replaced.
    """
    path = named_path(out)

    def fill(file: BinaryIO) -> None:
        if path.suffix == ".parquet":
            table.to_parquet(file, index=False)
        else:
            table.to_csv(file, index=False)

    write_whole(path.resolve(), fill)
