"""The command `find`: which neurons of a model write a word."""

from typing import Any

import click

from tl_subvalues.command.asking import require_writable
from tl_subvalues.command.options import DEVICE, DTYPE, MODEL, options
from tl_subvalues.command.row_options import JSON, UNIT, by_option, put, quoted
from tl_subvalues.command.start_up import load, quieten, word_check

_ROWS = {"ffn_neuron": "FFN neurons", "attn_neuron": "attention neurons"}


@click.command("find")
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@options(
    MODEL,
    UNIT,
    click.option("--top", default=20, show_default=True, type=click.IntRange(min=1), help="How many rows."),
    by_option("cosine"),
    click.option("--lowest", is_flag=True, help="Rows that write the words where their coefficient is negative."),
    JSON,
    DEVICE,
    DTYPE,
)
def find_command(
    words: tuple[str, ...],
    name: str,
    unit: Any,
    top: int,
    by: Any,
    lowest: bool,
    json_file: str | None,
    device: str | None,
    dtype: str,
) -> None:
    """Find the neurons of a model whose rows write WORD, or any of several; no prompt is needed.

    A WORD is text of exactly one token (mind its leading space: " capital"). All rows are searched, exactly.
    """
    # Cheap checks first: loading a model takes seconds.
    from tl_subvalues.command.answers import find_answer

    require_writable(json_file)
    word_check(name, "word")(words)
    quieten(progress=False)
    answer = find_answer(load(name, device, dtype), name, list(words), unit=unit, top=top, by=by, largest=not lowest)
    asked = " or ".join(map(repr, words))
    most = "least, where a negative coefficient writes them" if lowest else "most"
    title = (
        f"{name}: {_ROWS[unit]}, of {answer['searched']:,}, whose rows write {asked} {most} (by {by}; sign as stored)"
    )
    rows = answer["rows"]
    columns: dict[str, list[Any]] = {"label": [row["label"] for row in rows]}
    if len(words) > 1:
        columns["word"] = [repr(row["word"]) for row in rows]
    columns |= {by: [f"{row['value']:+.3f}" for row in rows], "rank": [f"{row['rank']:,}" for row in rows]}
    columns["bottom of the row" if lowest else "top of the row"] = [quoted(row["words"]) for row in rows]
    put(answer, json_file, [(title, columns)])
