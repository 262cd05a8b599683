"""The command `tl-subvalues`: a trace in the terminal, in a pipe, or as JSON."""

import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tl_subvalues.command.fact_commands import collect_command, evaluate_command
from tl_subvalues.command.find import find_command
from tl_subvalues.command.index import index_command
from tl_subvalues.command.mcp import mcp_command
from tl_subvalues.command.neuron import neuron_command
from tl_subvalues.command.show_command import require_output, show_command
from tl_subvalues.command.start_up import DTYPES, Session, debug_option, first_line, load, quieten, say, word_check
from tl_subvalues.errors import shown, told
from tl_subvalues.version import __version__

_REST = "rest"


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Where in a language model is a fact stored? Subvalues scored by the log-probability they add."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("prompt")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="WORD",
    help="The word to trace: text of exactly one token (mind its leading space). Repeat it for any of several words, "
    "leave it out for the model's most probable next token.",
)
@click.option(
    "--against",
    "others",
    multiple=True,
    metavar="WORD",
    help="Measure the target against this word, these words, or all others (rest): log p(target) - log p(against).",
)
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
@click.option("--device", help="Where to run, such as cpu or cuda.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPES), help="Of the weights.")
@debug_option
def trace(
    prompt: str,
    targets: tuple[str, ...],
    others: tuple[str, ...],
    name: str,
    top: int,
    position: int,
    scale: Any,
    bos: bool | None,
    json_file: str | None,
    html_file: str | None,
    save_to: str | None,
    plots_dir: str | None,
    plots_format: str,
    device: str | None,
    dtype: str,
) -> None:
    """Show what raises the log-probability of a word after PROMPT: layers, heads, source positions, neurons.

    Then what switched the first FFN neuron on, and which query neurons feed the top value neurons.
    """
    # Imported here, so that --help and a mistyped option do not wait for transformers to load.
    from rich.console import Console

    from tl_subvalues.command.pictures import require_folder, save_all
    from tl_subvalues.command.report import make_report, to_json
    from tl_subvalues.command.screen import print_rich, to_text
    from tl_subvalues.tracing.prompt import trace as trace_prompt

    # Cheap checks first: loading a model takes seconds.
    target, against = _words(targets), _against(others)
    _require_apart(targets, others)
    if json_file not in (None, "-"):
        target_file = Path(str(json_file)).resolve()
        if target_file.is_dir() or not target_file.parent.is_dir():
            raise ValueError(f"{json_file}: not a file, or the folder to write into does not exist.")
    require_output(html_file, save_to)
    if plots_dir is not None:
        folder = require_folder(plots_dir)
    word_check(name)([*targets, *(() if against == _REST else others)])
    progress = sys.stderr.isatty()
    said = quieten(progress)
    model = load(name, device, dtype)
    found = trace_prompt(model, prompt, target, against=against, position=position, scale=scale, prepend_bos=bos)
    report = make_report(found, model=name, top=top, chosen=target is None, warnings=said, show_progress=progress)
    if plots_dir is not None:
        neurons = report.tables.get("activations")
        for path in save_all(found, None if neurons is None else neurons.attrs["neuron"], folder, plots_format):
            click.echo(f"saved {shown(path)}", err=True)
    if html_file is not None:
        found.to_html(html_file)
    if save_to is not None:
        found.save(save_to)
    if json_file == "-":
        click.echo(to_json(report), nl=False)
        return
    if json_file is not None:
        Path(json_file).write_text(to_json(report), encoding="utf-8")
    if sys.stdout.isatty():
        print_rich(report, Console())
    else:
        click.echo(to_text(report), nl=False)


def _words(given: tuple[str, ...]) -> Any:
    """One word, several, or None."""
    return None if not given else given[0] if len(given) == 1 else list(given)


def _against(given: tuple[str, ...]) -> Any:
    if _REST in given and len(given) > 1:
        raise ValueError(f"--against {_REST} is all words but the target; leave the others out.")
    return _words(given)


def _require_apart(targets: tuple[str, ...], others: tuple[str, ...]) -> None:
    """Refuse what needs no model to be refused: a word without text, and one that is asked for twice."""
    if "" in (*targets, *others):
        raise ValueError("a word to trace is empty; pass text of one token.")
    twice = next((word for word, times in Counter((*targets, *others)).items() if times > 1), None)
    if twice is not None:
        both = twice in targets and twice in others
        where = "in the target and in what it is measured against" if both else "twice on one side"
        raise ValueError(f"{twice!r} is {where}; leave it out once.")


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


cli.add_command(evaluate_command)
cli.add_command(collect_command)
cli.add_command(show_command)
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
        _fail(error.format_message(), session)
    except (ValueError, KeyError, OSError, ImportError, RuntimeError, TypeError) as error:
        _fail(first_line(error), session)  # RuntimeError: what torch raises when memory runs out
    except Exception as error:  # a mistake of ours, or another library's
        _fail(f"{told(error)}; --debug shows where.", session)


def _fail(message: str, session: Session) -> None:
    if session.debug:
        traceback.print_exc()
    say(message)
    sys.exit(2)
