"""Options that several commands have: which model, where it runs, how it is read."""

from collections.abc import Callable
from typing import Any

import click

from tl_subvalues.command.start_up import DTYPES, debug_option

Command = Callable[..., None]

MODEL = click.option(
    "--model",
    "name",
    default="smollm2-135m",
    show_default=True,
    help="Embedded model, hub name, folder, GGUF file, or baevski18:FOLDER.",
)
DEVICE = click.option("--device", help="Where to run, such as cpu or cuda.")
DTYPE = click.option("--dtype", default="float32", show_default=True, type=click.Choice(DTYPES), help="Of the weights.")
SCALE = click.option(
    "--scale",
    default="frozen",
    show_default=True,
    type=click.Choice(["frozen", "recomputed"]),
    help="Scale of the final norm: of this run's end (the paper's way), or of whatever is read (logit lens).",
)
BOS = click.option(
    "--bos/--no-bos", default=None, help="Prepend the BOS token or not; the model's own default otherwise."
)


def options(*chosen: Any) -> Callable[[Command], Command]:
    """Options in the order of the help text, --debug last."""

    def add(function: Command) -> Command:
        for option in reversed((*chosen, debug_option)):
            function = option(function)
        return function

    return add
