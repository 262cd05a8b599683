"""What the commands about a model's own rows share: their options, and how their tables are printed."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tl_subvalues.command.options import Command
from tl_subvalues.errors import shown

JSON = click.option("--json", "json_file", metavar="FILE", help="Write the answer as JSON; - is standard output.")
UNIT = click.option(
    "--unit",
    default="ffn_neuron",
    show_default=True,
    type=click.Choice(["ffn_neuron", "attn_neuron"]),
    help="Rows of W_out, or of W_O.",
)


def by_option(default: str) -> Callable[[Command], Command]:
    """How rows are read."""
    return click.option(
        "--by",
        default=default,
        show_default=True,
        type=click.Choice(["cosine", "bs_value"]),
        help="How rows are read: by direction alone, or by the logit that they add.",
    )


def put(answer: dict[str, Any], json_file: str | None, sections: Sequence[tuple[str, dict[str, list[Any]]]]) -> None:
    """Write an answer as JSON, or print its sections; to a file both.

    Args:
        answer: in terms of JSON.
        json_file: None, a file's name, or "-" for standard output.
        sections: a title and columns each, numbers in the form that is printed, words as lists of them.
    """
    from tl_subvalues.command.answers import to_json

    if json_file == "-":
        click.echo(to_json(answer), nl=False)
        return
    if json_file is not None:
        Path(json_file).write_text(to_json(answer), encoding="utf-8")
    terminal = sys.stdout.isatty()
    for number, (title, columns) in enumerate(sections):
        if number:
            click.echo()
        (_drawn if terminal else _plain)(title, columns)


def quoted(words: Sequence[dict[str, Any]]) -> list[str]:
    """Tokens as they are shown, one by one."""
    return [repr(word["token"]) for word in words]


def _drawn(title: str, columns: dict[str, list[Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from tl_subvalues.command.screen import drawn

    console = Console()
    console.print(Text(title, style="bold"))
    if any(columns.values()):
        console.print(drawn(columns, numeric={"rank", "cosine", "bs_value", "Δ", "coefficient"}))


def _plain(title: str, columns: dict[str, list[Any]]) -> None:
    import pandas as pd

    click.echo(title)
    if any(columns.values()):
        flat = {
            heading: [" ".join(cell) if isinstance(cell, list) else shown(cell) for cell in cells]
            for heading, cells in columns.items()
        }
        click.echo(pd.DataFrame(flat).to_string(index=False))
