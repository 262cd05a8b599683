"""Where a model came from, for workers that can load it themselves."""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Origin:
    """How a model was loaded: the arguments of `load_model`, local paths in full."""

    name: str
    device: Any
    dtype: torch.dtype
    device_map: Any


_LOADED: "weakref.WeakKeyDictionary[Any, tuple[Origin, Any]]" = weakref.WeakKeyDictionary()
_BAEVSKI18 = "baevski18:"


def remember(model: Any, name: str, device: Any, dtype: torch.dtype, device_map: Any) -> None:
    """Keep how a model was loaded, as long as there is the model."""
    scheme = _BAEVSKI18 if name.startswith(_BAEVSKI18) else ""
    path = Path(name.removeprefix(scheme)).expanduser()
    if path.exists():
        name = f"{scheme}{path.resolve()}"
    _LOADED[model] = Origin(name, device, dtype, device_map), _state(model)


def origin_of(model: Any) -> Origin | None:
    """How a model was loaded; None where it was not by name, or its weights were replaced or written to since."""
    found = _LOADED.get(model)
    return found[0] if found is not None and found[1] == _state(model) else None


def _state(model: Any) -> Any:
    # A weight made in inference mode does not count how often it is written to.
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
