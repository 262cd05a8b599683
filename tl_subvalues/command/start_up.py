"""What every command does first: its common options, quieten the libraries, load the model, put errors in one line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tl_subvalues.errors import LONGEST, first_line, shown, shown_value

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass
class Session:
    """What the options of a command say to the program that runs it."""

    debug: bool = False


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and isinstance(context.find_root().obj, Session):
        context.find_root().obj.debug = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show where an error was raised, beside its one line.",
)


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


def word_check(name: str, what: str = "target") -> Callable[[Sequence[str]], None]:
    """What refuses words that are not one token of a model, without loading it, where its tokenizer is at hand.

    That is the embedded model once it was fetched; of any other model, all words pass. `what` a word is called.
    """
    from tl_subvalues.loading.embedded import EMBEDDED, embedded_tokenizer
    from tl_subvalues.model_view import not_one_token

    tokenizer = embedded_tokenizer() if name == EMBEDDED else None
    if tokenizer is None:
        return lambda words: None

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def refuse(words: Sequence[str]) -> None:
        for word in words:
            wrong = not_one_token(word, encode, lambda token: str(tokenizer.decode([token])), what)
            if wrong:
                raise ValueError(wrong)

    return refuse


def say(message: str) -> None:
    """One line on standard error, of limited length, with nothing in it that a terminal would obey."""
    click.echo(f"tl-subvalues: {shown(' '.join(message.split()), LONGEST)}", err=True)


def quieten(progress: bool) -> list[str]:
    """Keep the loaders' own warnings off the screen; their progress bars too, unless someone watches.

    This package's own warnings are said on standard error, each once.

    Returns:
        What was warned of so far; it grows.
    """
    import logging
    import warnings

    from transformers.utils import logging as hf_logging

    from tl_subvalues.errors import SubvaluesWarning

    said: list[str] = []

    def tell(message: Warning | str, *_: Any, **__: Any) -> None:
        said.append(str(message))
        say(str(message))

    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", category=SubvaluesWarning)
    warnings.showwarning = tell
    logging.getLogger().setLevel(logging.ERROR)  # TransformerLens warns through the root logger
    hf_logging.set_verbosity_error()
    hide: Any = hf_logging.disable_progress_bar
    if not progress:
        hide()
    return said
