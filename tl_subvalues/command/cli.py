"""The command `tl-subvalues`: a trace in the terminal, in a pipe, or as JSON."""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from tl_subvalues.command.asking import Question, asking_options, require_writable
from tl_subvalues.command.effect_commands import effects_command, graph_command
from tl_subvalues.command.explore import explore_command
from tl_subvalues.command.fact_commands import collect_command, evaluate_command, merge_command
from tl_subvalues.command.find import find_command
from tl_subvalues.command.index import index_command
from tl_subvalues.command.mcp import mcp_command
from tl_subvalues.command.neuron import neuron_command
from tl_subvalues.command.show_command import require_output, show_command
from tl_subvalues.command.start_up import Session, debug_option, quieten, say
from tl_subvalues.errors import first_line, shown, told
from tl_subvalues.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Where in a language model is a fact stored? Subvalues scored by the log-probability they add."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@asking_options
@click.option("--top", type=click.IntRange(min=1), help="Rows of each table: 10, of a page 50, of a saved trace 300.")
@click.option("--json", "json_file", metavar="FILE", help="Write all that is shown as JSON; - is standard output.")
@click.option("--plots", "plots_dir", metavar="DIR", help="Save the pictures into this folder.")
@click.option(
    "--plots-format",
    default="png",
    show_default=True,
    type=click.Choice(["png", "svg", "pdf"]),
    help="Of the pictures.",
)
@click.option("--html", "html_file", metavar="FILE", help="Write the trace as a page, one file that opens offline.")
@click.option("--save", "save_to", metavar="FILE", help="Save the trace for `show` and open_trace: a folder or a .zip.")
def trace(
    top: int | None,
    json_file: str | None,
    html_file: str | None,
    save_to: str | None,
    plots_dir: str | None,
    plots_format: str,
    **options: Any,
) -> None:
    """Show what raises the log-probability of a word after PROMPT: layers, heads, source positions, neurons.

    Then what switched the first FFN neuron on, and which query neurons feed the top value neurons.
    """
    # Cheap checks first: loading a model takes seconds.
    asked = Question(**options)
    require_writable(json_file)
    require_output(html_file, save_to)
    from tl_subvalues.command.pictures import require_folder, save_all
    from tl_subvalues.command.report import make_report, to_json
    from tl_subvalues.command.screen import write

    if plots_dir is not None:
        folder = require_folder(plots_dir)
    found = asked.trace()
    report = make_report(
        found.trace,
        model=asked.name,
        top=top or 10,
        chosen=found.chosen,
        warnings=found.said,
        show_progress=found.progress,
    )
    if plots_dir is not None:
        neurons = report.tables.get("activations")
        for path in save_all(found.trace, None if neurons is None else neurons.attrs["neuron"], folder, plots_format):
            click.echo(f"saved {shown(path)}", err=True)
    if html_file is not None:
        found.trace.to_html(html_file, top=top or 50)
        click.echo(f"saved {shown(html_file)}", err=True)
    if save_to is not None:
        found.trace.save(save_to, top=top or 300)
        click.echo(f"saved {shown(save_to)}", err=True)
    write(report, to_json(report), json_file)


@cli.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False))
@click.argument("dictionary", type=click.Path(exists=True, dir_okay=False), metavar="DICT")
@click.argument("out", type=click.Path(file_okay=False))
@debug_option
def convert(checkpoint: str, dictionary: str, out: str) -> None:
    """Convert Baevski & Auli's model from fairseq's CHECKPOINT and DICT (dict.txt) to the folder OUT.

    OUT holds safetensors, a configuration and the dictionary, and no pickle; trace it with --model baevski18:OUT.
    """
    from tl_subvalues import baevski18

    quieten(progress=False)
    baevski18.convert(checkpoint, dictionary, out)
    click.echo(f"Written to {shown(out)}; trace it with --model baevski18:{shown(out)}", err=True)


cli.add_command(effects_command)
cli.add_command(graph_command)
cli.add_command(evaluate_command)
cli.add_command(collect_command)
cli.add_command(merge_command)
cli.add_command(show_command)
cli.add_command(explore_command)
cli.add_command(find_command)
cli.add_command(neuron_command)
cli.add_command(index_command)
cli.add_command(mcp_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exit status 0, or 2 with one line on standard error for bad input, or 130 after Ctrl-C."""
    session = Session()
    try:
        status = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="tl-subvalues",
            standalone_mode=False,
            obj=session,
        )
        if status:
            sys.exit(status)
    except click.Abort:
        say("stopped.")
        sys.exit(130)
    except click.ClickException as error:
        message = error.format_message()
        if "unexpected extra argument" in message:
            message = f"{message.rstrip('.')}; put a text of several words in quotes."
        _fail(message, session)
    except (ValueError, KeyError, OSError, ImportError, RuntimeError, TypeError) as error:
        _fail(first_line(error), session)  # RuntimeError: what torch raises when memory runs out
    except Exception as error:  # a mistake of ours, or another library's
        _fail(f"{told(error)}; --debug shows where.", session)


def _fail(message: str, session: Session) -> None:
    if session.debug:
        traceback.print_exc()
    say(message)
    sys.exit(2)
