"""Several devices pretended on a CPU: every tensor has a place, and an operation on tensors of two places raises.

Under `Placement`, PyTorch's functions check and pass on the places as real devices would have it: `to`, `cpu` and
`device=` move, copying and indexing with a CPU index cross devices, a number (0-dimensional CPU tensor) goes anywhere.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
# These may mix devices: copies, and what only looks at its own tensor.
CROSSING = {Tensor.copy_, Tensor.__setitem__, Tensor.shape.__get__, Tensor.dtype.__get__}


def place(tensor: Tensor, device: str) -> None:
    """Say where a tensor is."""
    tensor.pretended = torch.device(device)


def place_of(tensor: Tensor) -> torch.device:
    """Where a tensor is."""
    return getattr(tensor, "pretended", CPU)


class Placement(TorchFunctionMode):
    """Raises where real devices would: "Expected all tensors to be on the same device"."""

    def __torch_function__(self, func: Any, types: Iterable, args: Sequence = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return place_of(args[0])
        if func is Tensor.numpy and place_of(args[0]) != CPU:
            raise TypeError("can't convert a tensor of another device to numpy")
        to = self._target(func, args, kwargs)
        if func is Tensor.to:
            args = [args[0], *(CPU if isinstance(a, torch.device | str) else a for a in args[1:])]
        if "device" in kwargs:
            kwargs["device"] = CPU
        tensors = [t for t in tree_leaves((list(args), kwargs)) if isinstance(t, Tensor)]
        if func is Tensor.to:
            tensors = tensors[:1]
        if func is Tensor.__getitem__ or func is Tensor.__setitem__:
            self._require_index(tensors)
            tensors = tensors[:1]
        places = {place_of(t) for t in tensors if t.ndim > 0 or place_of(t) != CPU}
        if len(places) > 1 and func not in CROSSING:
            raise RuntimeError(f"Expected all tensors to be on the same device, {func} got {places}")
        result = func(*args, **kwargs)
        where = to if to is not None else next((place_of(t) for t in tensors if place_of(t) != CPU), CPU)
        if func in CROSSING:
            where = place_of(args[0])
        if to is not None and any(result is t for t in tensors) and place_of(result) != to:
            result = result.detach()  # not the tensor itself, which stays where it is
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                leaf.pretended = where
        return result

    @staticmethod
    def _target(func: Any, args: Sequence, kwargs: dict) -> torch.device | None:
        if func is Tensor.cpu:
            return CPU
        if kwargs.get("device") is not None:
            return torch.device(kwargs["device"])
        if func is Tensor.to:
            for argument in args[1:]:
                if isinstance(argument, Tensor):
                    return place_of(argument)
                if isinstance(argument, torch.device | str):
                    return torch.device(argument)
        return None

    @staticmethod
    def _require_index(tensors: list[Tensor]) -> None:
        indexed, *index = tensors
        for tensor in index:
            if place_of(tensor) not in (CPU, place_of(indexed)):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
