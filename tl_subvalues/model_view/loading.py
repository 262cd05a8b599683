"""Models by name, as the installed TransformerLens loads them."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view.releases import bridge_class, hooked_class, require_supported_release


def _explain_falcon(name: str, error: RuntimeError) -> None:
    """Raise what is wrong with Falcon's newer configurations, as of Falcon 40B and 180B, where that is it."""
    from transformers import AutoConfig

    if "split_with_sizes" not in str(error):
        return
    config = AutoConfig.from_pretrained(name)
    if getattr(config, "new_decoder_architecture", False) and getattr(config, "multi_query", False):
        raise UnsupportedModelError(
            f"{name}: TransformerLens takes multi_query=true for one head of keys and values, where Falcon's new "
            f"decoder has {config.num_kv_heads} and overlooks that setting; save the model to a folder, set "
            "multi_query to false in its config.json, and load that."
        ) from error


def load_named(name: str, *, device: Any = None, dtype: torch.dtype = torch.float32, device_map: Any = None) -> Any:
    """A model on the Hugging Face hub or in a local folder: a TransformerBridge; HookedTransformer on release 2.

    Raises:
        UnsupportedModelError: if release 2 does not know the name, or cannot convert a folder's model; if the installed
            release is not supported.
    """
    require_supported_release()
    hooked = hooked_class()
    if bridge_class() is not None or hooked is None:
        from transformer_lens.model_bridge import TransformerBridge

        placed = {"device": device} if device_map is None else {"device_map": device_map}
        try:
            return TransformerBridge.boot_transformers(name, dtype=dtype, **placed)
        except RuntimeError as error:
            _explain_falcon(name, error)
            raise
    if device_map is not None:
        raise ValueError("device_map needs TransformerLens 3 or newer; on TransformerLens 2 pass device.")
    with contextlib.redirect_stdout(sys.stderr):  # where it prints what it loaded
        if Path(name).is_dir():
            from tl_subvalues.model_view.folders import hooked_from_folder

            return hooked_from_folder(hooked, Path(name), device=device, dtype=dtype)
        try:
            return hooked.from_pretrained_no_processing(name, device=device, dtype=dtype)  # type: ignore[attr-defined]
        except ValueError as error:
            if "Valid official model names" not in str(error):
                raise
            raise UnsupportedModelError(
                f"TransformerLens 2 has a list of the models that it loads, and {name!r} is not on it; pass a local "
                "folder with a model of a layout that it knows, or use TransformerLens 3 or newer."
            ) from error
