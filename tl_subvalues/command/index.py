"""The command `index`: the words of every neuron, as Parquet."""

import sys
from typing import Any

import click

from tl_subvalues.command.options import DEVICE, DTYPE, MODEL, options
from tl_subvalues.command.row_options import UNIT, by_option
from tl_subvalues.command.start_up import load, quieten, say


@click.command("index")
@click.argument("out", metavar="OUT.parquet")
@options(
    MODEL,
    UNIT,
    click.option("--words", "k", default=50, show_default=True, type=click.IntRange(min=1), help="Words a side."),
    by_option("bs_value"),
    DEVICE,
    DTYPE,
)
def index_command(out: str, name: str, unit: Any, k: int, by: Any, device: str | None, dtype: str) -> None:
    """Write the top and bottom words of every row of a model to OUT.parquet, for DuckDB or pandas.

    Killed at any moment, the same command goes on from where it was.
    """
    # Cheap checks first: loading a model takes seconds.
    from tl_subvalues.rows.index import write_index
    from tl_subvalues.rows.parts import require_writable

    require_writable(out)
    progress = sys.stderr.isatty()
    quieten(progress)
    path = write_index(load(name, device, dtype), out, k=k, unit=unit, by=by, show_progress=progress)
    say(f"the words are written to {path}")
