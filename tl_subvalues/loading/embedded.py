"""The embedded real model as a folder in the user's cache: fetched and converted on first use, checked on every use."""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock

from tl_subvalues.errors import shown, told
from tl_subvalues.loading.fetch import GGUF, fetch, sha256_of
from tl_subvalues.loading.progress import StageBar, hosts_bars_hidden

EMBEDDED = "smollm2-135m"
# How long each takes, in seconds: at 10 MB/s, and on two CPU cores.
STAGES = {"fetch": 9.0, "convert": 20.0, "load": 1.5}
_SCRATCH = ".making-"
_INVENTORY = "inventory.json"


def cache_folder() -> Path:
    """Where fetched models are kept: TL_SUBVALUES_CACHE, or the platform's cache folder for this package."""
    return Path(os.environ.get("TL_SUBVALUES_CACHE") or platformdirs.user_cache_dir("tl-subvalues"))


def stages_left() -> dict[str, float]:
    """What is still to be done until the embedded model is there, and how long each stage takes, in seconds."""
    return {"load": STAGES["load"]} if _folder().is_dir() else STAGES


def _folder() -> Path:
    # Transformers 4 overlooks where 5 writes the base of rotary positions, and takes 10,000 for 100,000.
    layout = "" if int(version("transformers").split(".")[0]) >= 5 else "-transformers4"
    return cache_folder() / f"{EMBEDDED}-{GGUF.sha256[:12]}{layout}-v2"


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
    folder = _folder()
    if not folder.is_dir():
        _make(folder, bar or StageBar(EMBEDDED, STAGES, show=False))
    require_as_made(folder)
    return folder


def _make(folder: Path, bar: StageBar) -> None:
    """Fetch and convert, in one process at a time; the folder appears whole or not at all."""
    if importlib.util.find_spec("gguf") is None:
        raise OSError("reading the embedded model takes the package gguf: pip install 'tl-subvalues[demo]'.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():  # by another process that was first
            return
        for left in folder.parent.glob(f"{_SCRATCH}*"):  # by a process that was killed: none other is at work
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_SCRATCH) as scratch:
            bar.begin("fetch")
            gguf = fetch(Path(scratch), bar.advance)
            bar.begin("convert")
            made = Path(scratch) / "model"
            try:
                _convert(gguf, made, bar.advance)
            except Exception as error:  # transformers, gguf, tokenizers and safetensors have their own kinds
                raise OSError(f"the embedded model could not be converted ({told(error)}).") from error
            write_inventory(made)
            made.rename(folder)


def _convert(gguf: Path, folder: Path, advance: Callable[[float], None]) -> None:
    """Dequantise to float32 and write what Hugging Face's from_pretrained reads, so that it is done only once."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with hosts_bars_hidden(lambda part: advance(0.68 + 0.1 * part)):
        config = AutoConfig.from_pretrained(**source)  # reads all of the file's description, as do the others
        advance(0.25)
        model = AutoModelForCausalLM.from_pretrained(**source, config=config, dtype=torch.float32)
        advance(0.78)
        # The weights are plain float32 now; a quantization_config would have loaders dequantise them again.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]  # else save_pretrained asks it how to save
        model.save_pretrained(folder)
        advance(0.83)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def write_inventory(folder: Path) -> None:
    """Write the sizes and hashes of a folder's files beside them."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    (folder / _INVENTORY).write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")


def require_as_made(folder: Path) -> None:
    """Refuse a folder whose files are not those of its inventory: sizes first, then hashes (0.4 s of 1.3 for a load).

    Raises:
        OSError: saying what differs, and what to do.
    """
    wrong = _difference(folder)
    if wrong is not None:
        raise OSError(f"{shown(folder)} is not as it was made: {wrong}; remove {shown(folder)} and run again.")


def _difference(folder: Path) -> str | None:
    try:
        expected = json.loads((folder / _INVENTORY).read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in expected.items()}
        hashes = {name: entry["sha256"] for name, entry in expected.items()}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return f"it has no {_INVENTORY} that can be read"
    # Hidden files are a file manager's; any other may be read with the model.
    there = {path.name: path for path in folder.iterdir() if not path.name.startswith(".") and path.name != _INVENTORY}
    if sizes.keys() != there.keys():
        return f"{shown(sorted(sizes.keys() ^ there.keys())[0])} is missing or was added"
    for name, path in there.items():
        if not path.is_file() or path.stat().st_size != sizes[name]:
            return f"{name} has another size"
    for name, path in there.items():
        if sha256_of(path) != hashes[name]:
            return f"{name} has another content"
    return None
