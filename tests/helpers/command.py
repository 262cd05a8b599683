"""A model for --model, and the command's exit status."""

from pathlib import Path
from typing import Any

from helpers import zoo
from tl_subvalues.command import cli


def tiny_folder(path: Path) -> Path:
    """A tiny Llama with its tokenizer in a folder."""
    zoo.hf_model("llama").save_pretrained(path)
    zoo.tokenizer().save_pretrained(path)
    return path


def run(*arguments: Any) -> int:
    """Exit status of the command, in this process."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)
    return 0
