"""The commands `effects` and `graph`: what parts do through the rest of the model, and what fed the output."""

from pathlib import Path
from typing import Any

import click

from tl_subvalues.command.asking import Question, asking_options, require_writable
from tl_subvalues.command.start_up import say
from tl_subvalues.errors import shown

_UNITS = ("sublayer", "head", "head_position", "attn_neuron", "ffn_neuron", "embedding")


@click.command("effects")
@asking_options
@click.option("--unit", default="ffn_neuron", show_default=True, type=click.Choice(_UNITS), help="Effects of what.")
@click.option(
    "--rule",
    default="gradient",
    show_default=True,
    type=click.Choice(["gradient", "frozen", "half"]),
    help="gradient predicts what taking one part out does; frozen and half say what the output consists of.",
)
@click.option(
    "--positions",
    default="all",
    show_default=True,
    type=click.Choice(["all", "last"]),
    help="Of what is added anywhere, or only where the target is predicted.",
)
@click.option("--top", default=20, show_default=True, type=click.IntRange(min=1), help="Rows of the table.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write the table to a .csv or .parquet file, all columns.")
@click.option("--json", "json_file", metavar="FILE", help="Write all that is shown as JSON; - is standard output.")
def effects_command(
    unit: str, rule: str, positions: str, top: int, csv_file: str | None, json_file: str | None, **options: Any
) -> None:
    """Show what parts do to a word after PROMPT through all later layers: direct effect beside total effect.

    trace ranks by what a part does at once, and shows its total effect beside; this ranks by that effect.
    """
    # Cheap checks first: loading a model takes seconds.
    asked = Question(**options)
    require_writable(json_file)
    from tl_subvalues.command.effects_report import effects_json, make_effects_report, rows_of
    from tl_subvalues.command.screen import write
    from tl_subvalues.study.output import require_writable_table, write_table

    require_writable_table(csv_file)
    found = asked.trace()
    report = make_effects_report(
        found.trace,
        model=asked.name,
        unit=unit,
        rule=rule,
        positions=positions,
        top=top,
        chosen=found.chosen,
        warnings=found.said,
    )
    if csv_file is not None:
        write_table(rows_of(report), csv_file)
    write(report, effects_json(report), json_file)


@click.command("graph")
@asking_options
@click.option(
    "--out",
    required=True,
    metavar="FILE.json",
    help="Where to write the graph: the JSON that circuit-tracer's and Neuronpedia's viewers read.",
)
@click.option(
    "--nodes", default=64, show_default=True, type=click.IntRange(min=1), help="FFN neurons, by size of total effect."
)
@click.option(
    "--edges",
    default=0.98,
    show_default=True,
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Share of the influence on the target that edges are kept for.",
)
@click.option(
    "--rule",
    default="frozen",
    show_default=True,
    type=click.Choice(["frozen", "half"]),
    help="How gates are made linear, as for effects.",
)
def graph_command(out: str, nodes: int, edges: float, rule: Any, **options: Any) -> None:
    """Write what fed a word after PROMPT: the strongest FFN neurons at positions, and what each added to later ones."""
    asked = Question(**options)
    if out == "-" or not out.endswith(".json"):
        raise ValueError(f"{shown(out)}: the graph is written to a .json file.")
    require_writable(out)
    trace = asked.trace().trace
    graph = trace.graph(nodes=nodes, edges=edges, rule=rule)
    graph.to_json(out, slug=Path(out).stem)
    kept = int((~graph.edges["source"].isin(["others", "bias"])).sum())
    say(f"{len(graph.nodes):,} nodes and {kept:,} edges are written to {out}")
