"""The embedded real model as a folder in the user's cache: fetched and converted on first use, checked on every use."""

from pathlib import Path
from typing import Any

from tl_subvalues.errors import told
from tl_subvalues.loading.fetch import GGUF, fetch
from tl_subvalues.loading.ggufs import convert, layout, require_reader
from tl_subvalues.loading.kept import cache_folder, make_once, require_as_made
from tl_subvalues.loading.progress import StageBar

EMBEDDED = "smollm2-135m"
# How long each takes, in seconds: at 10 MB/s, and on two CPU cores.
STAGES = {"fetch": 9.0, "convert": 20.0, "load": 1.5}


def stages_left() -> dict[str, float]:
    """What is still to be done until the embedded model is there, and how long each stage takes, in seconds."""
    return {"load": STAGES["load"]} if _folder().is_dir() else STAGES


def _folder() -> Path:
    return cache_folder() / f"{EMBEDDED}-{GGUF.sha256[:12]}{layout()}-v2"


def embedded_tokenizer() -> Any:
    """The embedded model's tokenizer, of the package tokenizers, at once; None where the model is yet to be fetched."""
    from tokenizers import Tokenizer

    path = _folder() / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path)) if path.is_file() else None
    except Exception:  # a damaged file: told of when the model is loaded
        return None


def embedded_folder(bar: StageBar | None = None) -> Path:
    """The embedded model as a folder of safetensors, configuration and tokenizer; made on first use.

    Raises:
        OSError: if the package cannot be fetched or is another; if the folder is not as it was made.
    """
    folder, bar = _folder(), bar or StageBar(EMBEDDED, STAGES, show=False)

    def make(scratch: Path, made: Path) -> None:
        bar.begin("fetch")
        gguf = fetch(scratch, bar.advance)
        bar.begin("convert")
        try:
            convert(gguf, made, bar.advance)
        except Exception as error:  # transformers, gguf, tokenizers and safetensors have their own kinds
            raise OSError(f"the embedded model could not be converted ({told(error)}).") from error

    if not folder.is_dir():
        require_reader("the embedded model")
        make_once(folder, make)
    require_as_made(folder)
    return folder
