"""What was read off a block's weights once, for as long as they are the same and unwritten."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from tl_subvalues.model_view.releases import version_of

T = TypeVar("T")


class Remembered:
    """Answers about one module, kept until one of its parameters is replaced or written to.

    Only what holds the parameters' own memory is kept: a copy (weights that TransformerLens puts together anew) would
    double a model.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._seen: list[tuple[dict[str, Any], str, Tensor, tuple[int, int]]] = []
        self._kept: dict[str, Any] = {}

    def __call__(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, or what it gave."""
        if name in self._kept and all(
            home.get(key) is p and (p.data_ptr(), version_of(p)) == was for home, key, p, was in self._seen
        ):
            kept: T = self._kept[name]
            return kept
        made = make()
        weights = [
            (m._parameters, key, p, _state(p))
            for m in self._module.modules()
            for key, p in m._parameters.items()
            if p is not None
        ]
        if [(id(p), was) for _, _, p, was in weights] != [(id(p), was) for _, _, p, was in self._seen]:
            self._seen, self._kept = weights, {}
        own = {p.untyped_storage().data_ptr() for _, _, p, _ in weights}
        held = [value for value in vars(made).values() if isinstance(value, Tensor)]
        if all(tensor.untyped_storage().data_ptr() in own for tensor in held):
            self._kept[name] = made
        return made


def _state(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), version_of(tensor)
