"""`tl-subvalues show`: a saved trace in a terminal or a pipe, without its model."""

from typing import Any

import click

from tl_subvalues.command.start_up import debug_option
from tl_subvalues.errors import shown


@click.command("show")
@click.argument("file", type=click.Path(exists=True))
@click.option("--top", type=click.IntRange(min=1), help="Rows of each table: 10, of a page 50.")
@click.option("--html", "html_file", metavar="FILE", help="Write the trace as a page, one file, instead.")
@debug_option
def show_command(file: str, top: int | None, html_file: str | None) -> None:
    """Show a trace that `trace --save` or `Trace.save` wrote: FILE is its folder or .zip."""
    # Imported here, so that --help does not wait for pandas.
    from tl_subvalues.saved.opened import open_trace
    from tl_subvalues.saved.text import to_text

    _require_file_name("--html", html_file)
    saved = open_trace(file)
    if html_file is not None:
        saved.to_html(html_file, top=top or 50)
        click.echo(f"saved {shown(html_file)}", err=True)
        return
    click.echo(to_text(saved, top or 10), nl=False)


def require_output(html_file: Any, save_to: Any) -> None:
    """Refuse, before the model is loaded, what a trace could not be written to.

    Raises:
        ValueError: saying which.
    """
    if html_file is None and save_to is None:
        return
    from tl_subvalues.saved.files import require_target
    from tl_subvalues.saved.pages import require_file

    _require_file_name("--html", html_file)
    _require_file_name("--save", save_to)
    require_file(html_file)
    if save_to is not None:
        require_target(save_to)


def _require_file_name(option: str, file: Any) -> None:
    """Refuse `-`, which stands for standard output elsewhere."""
    if file == "-":
        raise ValueError(f"{option} writes a file, and not to standard output; name one (./- for one called so).")
