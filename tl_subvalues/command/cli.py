"""The command `tl-subvalues`: a trace in the terminal, in a pipe, or as JSON."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tl_subvalues.command.fact_commands import collect_command, evaluate_command
from tl_subvalues.command.start_up import DTYPES, LONGEST, first_line, load, quieten
from tl_subvalues.errors import shown


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(package_name="tl-subvalues")
@click.pass_context
def cli(context: click.Context) -> None:
    """Where in a language model is a fact stored? Subvalues scored by the log-probability they add."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("prompt")
@click.option("--target", required=True, help="The token to trace: text of exactly one token (mind its leading space).")
@click.option(
    "--model",
    "name",
    default="smollm2-135m",
    show_default=True,
    help="Embedded model, hub name, folder, or baevski18:FOLDER.",
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=1), help="Rows of each table.")
@click.option("--position", default=-1, show_default=True, help="Where the target is predicted; -1 is the last token.")
@click.option(
    "--scale",
    default="frozen",
    show_default=True,
    type=click.Choice(["frozen", "recomputed"]),
    help="Scale of the final norm: of this run's end (the paper's way), or of whatever is read (logit lens).",
)
@click.option("--bos/--no-bos", default=None, help="Prepend the BOS token or not; the model's own default otherwise.")
@click.option("--json", "json_file", metavar="FILE", help="Write all that is shown as JSON; - is standard output.")
@click.option("--plots", "plots_dir", metavar="DIR", help="Save the pictures into this folder, as PNG.")
@click.option("--device", help="Where to run, such as cpu or cuda.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPES), help="Of the weights.")
def trace(
    prompt: str,
    target: str,
    name: str,
    top: int,
    position: int,
    scale: Any,
    bos: bool | None,
    json_file: str | None,
    plots_dir: str | None,
    device: str | None,
    dtype: str,
) -> None:
    """Show what raises the log-probability of a token after PROMPT: layers, heads, source positions, neurons.

    Then what switched the first FFN neuron on, and which query neurons feed the top value neurons.
    """
    # Imported here, so that --help and a mistyped option do not wait for transformers to load.
    from rich.console import Console

    from tl_subvalues.command import report as reports
    from tl_subvalues.command.pictures import require_folder, save_all
    from tl_subvalues.tracing.prompt import trace as trace_prompt

    progress = sys.stderr.isatty()
    quieten(progress)
    if json_file not in (None, "-"):
        target_file = Path(str(json_file)).resolve()
        if target_file.is_dir() or not target_file.parent.is_dir():
            raise ValueError(f"{json_file}: not a file, or the folder to write into does not exist.")
    if plots_dir is not None:
        folder = require_folder(plots_dir)
    model = load(name, device, dtype)
    found = trace_prompt(model, prompt, target, position=position, scale=scale, prepend_bos=bos)
    report = reports.make_report(found, model=name, top=top, show_progress=progress)
    if plots_dir is not None:
        neurons = report.tables.get("activations")
        for path in save_all(found, None if neurons is None else neurons.attrs["neuron"], folder):
            click.echo(f"saved {path}", err=True)
    if json_file == "-":
        click.echo(reports.to_json(report), nl=False)
        return
    if json_file is not None:
        Path(json_file).write_text(reports.to_json(report), encoding="utf-8")
    if sys.stdout.isatty():
        reports.print_rich(report, Console())
    else:
        click.echo(reports.to_text(report), nl=False)


@cli.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False))
@click.argument("dictionary", type=click.Path(exists=True, dir_okay=False), metavar="DICT")
@click.argument("out", type=click.Path(file_okay=False))
def convert(checkpoint: str, dictionary: str, out: str) -> None:
    """Convert Baevski & Auli's model from fairseq's CHECKPOINT and DICT (dict.txt) to the folder OUT.

    OUT holds safetensors, a configuration and the dictionary, and no pickle; trace it with --model baevski18:OUT.
    """
    from tl_subvalues import baevski18

    quieten(progress=False)
    baevski18.convert(checkpoint, dictionary, out)
    click.echo(f"Written to {out}; trace it with --model baevski18:{out}", err=True)


cli.add_command(evaluate_command)
cli.add_command(collect_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exit status 0, or 2 with one line on standard error for bad input."""
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="tl-subvalues", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        _fail(error.format_message())
    except (ValueError, KeyError, OSError, ImportError, RuntimeError, TypeError) as error:
        _fail(first_line(error))  # RuntimeError: what torch raises when memory runs out


def _fail(message: str) -> None:
    click.echo(f"tl-subvalues: {shown(' '.join(message.split()), LONGEST)}", err=True)
    sys.exit(2)
