"""What every command does first: quieten the libraries, load the model, put errors in one line."""

from pathlib import Path
from typing import Any

import click

from tl_subvalues.errors import shown, shown_value

# Characters of a message on a terminal: beyond what our own need, short of what fills a screen.
LONGEST = 1000
DTYPES = ("float32", "float64", "bfloat16", "float16")


def load(name: str, device: str | None, dtype: str) -> Any:
    """The model that --model, --device and --dtype name.

    Raises:
        ValueError: saying which of them cannot be used.
    """
    # Imported here, so that --help and a mistyped option do not wait for transformers to load.
    import torch

    from tl_subvalues.loading.models import load_model

    if device is not None:
        try:
            torch.zeros(1, device=device).item()  # "meta" makes tensors, but has no numbers
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used: {first_line(error)}") from error
    if not name or (name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir()):
        raise ValueError(f"model {shown_value(name)}: there is no such folder.")
    try:
        return load_model(name, device=device, dtype=getattr(torch, dtype))
    except Exception as error:  # other libraries' own kinds among them
        raise ValueError(f"model {shown_value(name)} cannot be loaded: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error in one line of limited length: its message without the quotes that KeyError puts around it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return shown(text.strip().splitlines()[0], LONGEST) if text.strip() else type(error).__name__


def quieten(progress: bool) -> None:
    """Keep the loaders' own warnings off the screen; their progress bars too, unless someone watches."""
    import logging
    import warnings

    from transformers.utils import logging as hf_logging

    from tl_subvalues.errors import UnknownWordsWarning

    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", category=UnknownWordsWarning)
    warnings.showwarning = lambda message, *_, **__: click.echo(f"tl-subvalues: {shown(message, LONGEST)}", err=True)
    logging.getLogger().setLevel(logging.ERROR)  # TransformerLens warns through the root logger
    hf_logging.set_verbosity_error()
    hide: Any = hf_logging.disable_progress_bar
    if not progress:
        hide()
