"""Local GGUF files (llama.cpp's format) as folders that Hugging Face reads: converted once, kept by their digest."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tl_subvalues.errors import UnsupportedModelError, shown, told
from tl_subvalues.loading.gguf_description import Described, complete, require_all_read
from tl_subvalues.loading.kept import cache_folder, make_once, not_as_made, require_as_made, sha256_of
from tl_subvalues.loading.progress import StageBar, hosts_bars_hidden

# Of a file of 250 MB on two CPU cores, in seconds.
STAGES = {"read": 0.2, "convert": 30.0, "load": 3.0}
_MAGIC = b"GGUF"
_SOURCE = "source.json"


def layout() -> str:
    """What a kept folder's name says of the transformers that wrote it."""
    # Transformers 4 overlooks where 5 writes the base of rotary positions, and takes 10,000 for 100,000.
    return "" if int(version("transformers").split(".")[0]) >= 5 else "-transformers4"


def require_reader(what: str) -> None:
    """Refuse where the package `gguf` is not installed.

    Raises:
        OSError: with the command that installs it.
    """
    if importlib.util.find_spec("gguf") is None:
        raise OSError(f"reading {what} takes the package gguf: pip install 'tl-subvalues[demo]'.")


def gguf_folder(path: Path, bar: StageBar | None = None) -> Path:
    """A GGUF file's model as a folder of safetensors, configuration and tokenizer; made at the file's first use.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no GGUF file, torn, or one part of several.
        UnsupportedModelError: if transformers does not read its layout, or not all that it holds.
        OSError: if the reader is not installed, or the kept folder is not as it was made.
    """
    bar = bar or StageBar(path.name, STAGES, show=False)
    _require_gguf(path)
    bar.begin("read")
    before, digest = path.stat(), sha256_of(path, bar.advance)
    folder = cache_folder() / f"gguf-{digest[:32]}{layout()}-v2"

    def make(scratch: Path, made: Path) -> None:
        bar.begin("convert")
        described = Described.read(path)
        _converted(path, made, described, bar.advance)
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise OSError(f"{shown(path)} changed while it was read; run again.")
        source = {"sha256": digest, "adds_bos": described.adds_bos}
        (made / _SOURCE).write_text(json.dumps(source) + "\n", encoding="utf-8")

    if not folder.is_dir():
        require_reader("a GGUF file")
        make_once(folder, make)
    require_as_made(folder)
    if source_of(folder).get("sha256") != digest:
        raise not_as_made(folder, "it was made from another file")
    return folder


def source_of(folder: Path) -> dict[str, Any]:
    """What a kept folder was made from: the file's `sha256`, and whether its tokenizer `adds_bos` (None: not said)."""
    try:
        source = json.loads((folder / _SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return source if isinstance(source, dict) else {}


def _require_gguf(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)}: there is no such file.")
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f"{shown(path)}: is no GGUF file; name one, or a folder in Hugging Face's layout.")


def _converted(path: Path, made: Path, described: Described, advance: Callable[[float], None]) -> None:
    """`convert`, with what it raises in one sentence."""
    try:
        convert(path, made, advance, described)
    except (UnsupportedModelError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers, gguf, tokenizers and safetensors have their own kinds
        raise UnsupportedModelError(
            f"{shown(path)}: transformers does not read this GGUF file of architecture "
            f"{shown(described.architecture)} ({told(error)}); convert its original with transformers to a folder, and "
            "name that."
        ) from error


@contextmanager
def _alone(gguf: Path) -> Iterator[dict[str, Any]]:
    """Where transformers' loaders find the file and nothing beside it, such as another model's tokenizer.json."""
    with tempfile.TemporaryDirectory(prefix="tl-subvalues-gguf-") as folder:
        place = Path(folder) / gguf.name
        try:
            place.symlink_to(gguf.resolve())
        except OSError:  # a system, or a user, without links
            shutil.copyfile(gguf, place)
        yield {"pretrained_model_name_or_path": folder, "gguf_file": gguf.name}


def convert(gguf: Path, folder: Path, advance: Callable[[float], None], described: Described | None = None) -> None:
    """Dequantise to float32 and write what Hugging Face's from_pretrained reads, so that it is done only once.

    Raises:
        UnsupportedModelError: if what the file says or holds is not all in the model that transformers makes of it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with _alone(gguf) as source, hosts_bars_hidden(lambda part: advance(0.68 + 0.1 * part)):
        config = AutoConfig.from_pretrained(**source)  # reads all of the file's description, as do the others
        if described is not None:
            complete(config, described, gguf)
        advance(0.25)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source, config=config, dtype=torch.float32, output_loading_info=True
        )
        model, loading = loaded
        advance(0.78)
        if described is not None:
            require_all_read(model, loading, described, gguf)
        # The weights are plain float32 now; a quantization_config would have loaders dequantise them again.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None  # else save_pretrained asks it how to save
        model.save_pretrained(folder)
        advance(0.83)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
