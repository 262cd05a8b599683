"""The command `neuron`: a neuron's card."""

from pathlib import Path
from typing import Any

import click

from tl_subvalues.command.asking import require_writable
from tl_subvalues.command.options import DEVICE, DTYPE, MODEL, options
from tl_subvalues.command.row_options import JSON, by_option, put, quoted
from tl_subvalues.command.start_up import load, quieten
from tl_subvalues.errors import shown

_PROMPT = 60  # characters of a prompt that are printed, its end


@click.command("neuron")
@click.argument("label")
@options(
    MODEL,
    click.option("--words", "k", default=10, show_default=True, type=click.IntRange(min=1), help="Words a side."),
    click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="Rows like it."),
    by_option("cosine"),
    click.option("--facts", metavar="FACTS.csv", help="Trace these facts, and list those that have it at the top."),
    click.option(
        "--of", "of_fact", default=300, show_default=True, type=click.IntRange(min=1), help="The top is so many."
    ),
    click.option("--bos/--no-bos", default=None, help="Prepend the BOS token to facts; the model's default otherwise."),
    JSON,
    DEVICE,
    DTYPE,
)
def neuron_command(
    label: str,
    name: str,
    k: int,
    top: int,
    by: Any,
    facts: str | None,
    of_fact: int,
    bos: bool | None,
    json_file: str | None,
    device: str | None,
    dtype: str,
) -> None:
    """Show what a neuron writes, by its row: LABEL is L24N1005 (FFN), L3E5N10 (of an expert) or L23H4D38 (attention).

    The words of its row both ways, the rows most like it, and, with --facts, the facts that have it at the top.
    """
    # Cheap checks first: loading a model takes seconds.
    from tl_subvalues.command.answers import neuron_answer
    from tl_subvalues.labels import parse_label

    parse_label(label)
    require_writable(json_file)
    if facts is not None and not Path(facts).is_file():
        raise ValueError(f"{shown(facts)}: there is no such file.")
    quieten(progress=False)
    answer = neuron_answer(
        load(name, device, dtype), name, label, k=k, top=top, by=by, facts=facts, of_fact=of_fact, bos=bos
    )
    put(answer, json_file, _sections(answer, by))


def _sections(answer: dict[str, Any], by: str) -> list[tuple[str, dict[str, list[Any]]]]:
    """What is printed: titles and columns."""
    sides = {
        "top, written where its coefficient is positive": answer["top"],
        "bottom, written where it is negative": answer["bottom"],
    }
    own: dict[str, list[Any]] = {"side": list(sides), "words": [quoted(words) for words in sides.values()]}
    alike = answer["similar"]
    found: list[tuple[str, dict[str, list[Any]]]] = [
        (f"{answer['model']}, {answer['label']}: the words of its row (by {by})", own),
        (
            "Rows that point the same way",
            {
                "label": [row["label"] for row in alike],
                "cosine": [f"{row['cosine']:+.3f}" for row in alike],
                "top": [quoted(row["words"]["top"]) for row in alike],
                "bottom": [quoted(row["words"]["bottom"]) for row in alike],
            },
        ),
    ]
    if "facts" in answer:
        facts = answer["facts"]
        title = f"In the top {answer['facts_top']:,} of {len(facts):,} of {answer['facts_traced']:,} facts"
        columns = {
            "prompt": [shown(str(fact["prompt"])[-_PROMPT:]) for fact in facts],
            "target": [repr(fact["target"]) for fact in facts],
            "rank": [f"{fact['rank']:,}" for fact in facts],
            "Δ": [f"{fact['increase']:+.3f}" for fact in facts],
            "coefficient": [f"{fact['coefficient']:+.2f}" for fact in facts],
        }
        found.append((title, columns))
    return found
