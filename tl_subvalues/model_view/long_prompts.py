"""A run whose memory grows with the prompt and not with its square: rows at one position, the rest made on request.

Patterns of all queries are [layer, head, query, key]; a trace reads one row of each, its sublayers' inputs and outputs
at one position, and values at all. What is read elsewhere later is made again: at another position by one more pass,
at all positions by one more pass a layer, of which the last one is kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tl_subvalues.model_view.indexing import Positions
from tl_subvalues.model_view.releases import version_of

Capture = Callable[[Tensor, Any], None]
# Runs the model under hooks, and gives its logits at the position that is read.
Forward = Callable[[Sequence[tuple[str, Capture]]], Tensor]
# Numbers of a chunk of memory for rows. A row by itself, left between what the forward pass frees, would keep the freed
# memory from going back: 270 MB for 1,000 tokens.
_CHUNK = 1 << 22
# Other positions that are kept: heads that read a few of them are asked about one after the other.
_KEPT = 4


class Shelf:
    """Copies of tensors side by side in few large pieces of memory."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor."""
        key, size = (tensor.dtype, tensor.device), tensor.numel()
        free = self._chunks.get(key)
        if free is None or len(free) < size:
            free = tensor.new_empty(max(size, _CHUNK))
        self._chunks[key] = free[size:]
        return free[:size].view(tensor.shape).copy_(tensor.detach())


class RowsOfRun(dict[str, Any]):
    """The activations of one prompt by name, as an ActivationCache holds them; each is made when it is asked for.

    Args:
        forward: runs the model on the prompt, for its logits at the position.
        names: what the cache is to have.
        position: whose rows are kept.
        n_positions: of the prompt.
    """

    def __init__(self, forward: Forward, names: Iterable[str], position: int, n_positions: int) -> None:
        self._forward, self.position, self.n_positions = forward, position, n_positions
        self.shapes: dict[str, torch.Size] = {}
        self.infinite: dict[str, int] = {}  # the first position where the residual stream is no number
        self._everywhere: dict[str, Tensor] = {}  # values, which heads read at all positions
        self._rows: dict[int, dict[str, Tensor]] = {position: {}}
        self._layer: tuple[str, dict[str, Tensor]] = ("", {})
        self._shelf = Shelf()
        self.logits = forward([(name, self._first(name)) for name in names])
        super().__init__(dict.fromkeys(self.shapes))

    def _first(self, name: str) -> Capture:
        def capture(tensor: Tensor, hook: Any) -> None:
            del hook
            self.shapes[name] = tensor.shape
            if name.endswith("hook_v"):
                self._everywhere[name] = self._shelf.copy(tensor)
                return
            self._rows[self.position][name] = self._shelf.copy(_row(name, tensor, self.position))
            if "hook_resid" in name and not torch.isfinite(tensor).all():
                self.infinite[name] = int(torch.nonzero(~torch.isfinite(tensor))[0, 1])

        return capture

    def index(self, name: str, positions: Positions, dim: int) -> Tensor:
        """An activation at some positions, which are on axis `dim`."""
        single = self._single(positions)
        if name in self._everywhere or single is None:
            return self[name][(slice(None),) * dim + (positions,)]
        row = self._at(single)[name]
        return row.select(dim, 0) if isinstance(positions, int) else row

    def _single(self, positions: Positions) -> int | None:
        """The one position that an index stands for, counted from the front; None for several."""
        if isinstance(positions, int):
            return positions % self.n_positions
        found = range(self.n_positions)[positions] if isinstance(positions, slice) else ()
        return found[0] if len(found) == 1 else None

    def _at(self, position: int) -> dict[str, Tensor]:
        if position not in self._rows:
            found: dict[str, Tensor] = {}
            shelf = Shelf()

            def rows(name: str) -> Capture:
                return _keep(found, name, lambda tensor: shelf.copy(_row(name, tensor, position)))

            self._again([(name, rows(name)) for name in self.shapes if name not in self._everywhere])
            others = [kept for kept in self._rows if kept != self.position]
            if len(others) >= _KEPT:
                del self._rows[others[0]]
            self._rows[position] = found
        return self._rows[position]

    def __getitem__(self, name: str) -> Tensor:
        if name in self._everywhere:
            return self._everywhere[name]
        if name not in self.shapes:
            raise KeyError(name)
        layer = _layer_of(name)
        if self._layer[0] != layer:
            self._layer = ("", {})  # the one that was kept goes first
            found: dict[str, Tensor] = {}
            names = [n for n in self.shapes if _layer_of(n) == layer and n not in self._everywhere]
            self._again([(n, _keep(found, n, lambda t: t.detach().clone())) for n in names])
            self._layer = (layer, found)
        return self._layer[1][name]

    def _again(self, hooks: list[tuple[str, Capture]]) -> None:
        """Run once more.

        Raises:
            ValueError: if the model answers otherwise than in the first run.
        """
        logits = self._forward(hooks)
        if not torch.allclose(logits, self.logits, rtol=1e-3, atol=1e-3 * float(self.logits.abs().max())):
            raise ValueError(
                "of a long prompt, activations at other positions are made again when they are asked for, and the "
                "model now answers otherwise than when it was traced (hooks or settings have changed since); trace "
                "the prompt again."
            )

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever what is kept of the first run is written to."""
        kept = {**self._everywhere, **self._rows[self.position]}
        return tuple((name, kept[name].data_ptr(), version_of(kept[name])) for name in sorted(kept))

    def items(self) -> Any:
        """Names and activations, one after the other."""
        return ((name, self[name]) for name in self)

    def values(self) -> Any:
        """Activations, one after the other."""
        return (self[name] for name in self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def get(self, name: str, default: Any = None) -> Any:
        """An activation, or the default where there is none of that name."""
        return self[name] if name in self.shapes else default


def _keep(found: dict[str, Tensor], name: str, copied: Callable[[Tensor], Tensor]) -> Capture:
    def capture(tensor: Tensor, hook: Any) -> None:
        del hook
        found[name] = copied(tensor)

    return capture


def _row(name: str, tensor: Tensor, position: int) -> Tensor:
    """An activation at one position, whose axis stays."""
    dim = 2 if name.endswith("hook_pattern") else 1
    return tensor.narrow(dim, position, 1)


def _layer_of(name: str) -> str:
    """What is made again together."""
    return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else "outside the blocks"
