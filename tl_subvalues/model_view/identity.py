"""Which model this is, to the bit: what a record of its results has to agree with before it is taken up again.

Everything that decides what the model computes, and nothing of where it does: the same on another device, in another
process, from another folder.
"""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tl_subvalues.model_view.modules import configuration_below

# Bytes hashed at a time: what it takes beside the model. SHA-256 reads 1.4 GB a second on two cores of 2025.
_CHUNK = 2**24
# Entries of a configuration that say where a model is, or what it is called.
_WHERE = {
    *("device", "n_devices", "device_map", "model_name", "tokenizer_name", "_name_or_path", "transformers_version"),
    *("seed", "init_weights", "init_mode"),
}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identity(model: Any) -> dict[str, str]:
    """Digests of weights and configuration, and the versions that make results of them.

    Not the version of Python, nor torch's build (+cpu, +cu126): they go with the machine.

    Raises:
        ValueError: if weights lie where they cannot be read (offloaded to disk by accelerate).
    """
    return {
        "weights": _digest_of_tensors(model),
        "configuration": _digest_of_configuration(model),
        **{name: _version(name) for name in ("transformer_lens", "transformers", "torch")},
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _digest_of_tensors(model: Any) -> str:
    """SHA-256 of all parameters and buffers in order: name, dtype, shape, bytes."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *_lasting_buffers(model)]:
        if tensor.is_meta:
            raise ValueError(
                f"{name} is offloaded, so no record can be kept of this model; leave out= and record= out."
            )
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for piece in _pieces(tensor.detach()):
            digest.update(piece.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in parts of limited size, along its first axis (whole, where one row is larger than that)."""
    if tensor.ndim == 0:
        yield tensor[None]
    elif tensor.numel():
        row = tensor[0].numel() * tensor.element_size()
        yield from tensor.split(max(1, _CHUNK // row))


def _lasting_buffers(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Buffers, but for frequencies of rotary positions that change with the length of the last prompt."""
    for prefix, module in model.named_modules():
        kinds = getattr(module, "rope_type", None)
        changing = any("dynamic" in str(kind) or kind == "longrope" for kind in _values(kinds))
        for name, buffer in module.named_buffers(recurse=False):
            if not (changing and name.endswith("inv_freq") and "original" not in name):
                yield f"{prefix}.{name}", buffer


def _values(kinds: Any) -> list[Any]:
    return list(kinds.values()) if isinstance(kinds, dict) else [kinds]


def _digest_of_configuration(model: Any) -> str:
    """SHA-256 of TransformerLens's configuration, Hugging Face's where there is one, and every module's own words."""
    described = {
        "cfg": _plain(vars(model.cfg)),
        "config": _plain(configuration_below(model)),
        "modules": [
            [name, type(module).__name__, _ADDRESS.sub("", module.extra_repr())]
            for name, module in model.named_modules()
        ],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """A configuration as JSON has it: what it has no words for by its text, without addresses."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items() if key not in _WHERE}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _ADDRESS.sub("", str(value))
