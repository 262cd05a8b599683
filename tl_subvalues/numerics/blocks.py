"""How numbers are computed: outside autocast, and in blocks of one fixed size.

A matrix product may sum in another order when it has another number of rows, which changes the last bits. In blocks of
a fixed size, the last one filled up, a row gives the same bits whatever stands beside it.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

# Numbers of a weight that are converted at a time: 16 million are 64 MB in float32.
_NUMBERS = 1 << 24


def padded(rows: Shaped[Tensor, "n *rest"], multiple: int) -> Shaped[Tensor, "padded *rest"]:
    """Rows filled up with zeros to a multiple."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def in_blocks(rows: Shaped[Tensor, "n *rest"], size: int) -> Sequence[Shaped[Tensor, "_ *rest"]]:
    """Rows, at most so many at a time; what fits in one block is it."""
    return (rows,) if len(rows) <= size else rows.split(size)


def joined(blocks: Sequence[Shaped[Tensor, "_ *rest"]]) -> Shaped[Tensor, "n *rest"]:
    """Blocks one after the other; one alone is not copied."""
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))


def affine(x: Float[Tensor, "*rest d_in"], W: Tensor, b: Tensor | None) -> Float[Tensor, "*rest d_out"]:
    """X W + b, few columns of W converted at a time, where W is."""
    step = max(1, _NUMBERS // W.shape[0])
    y = torch.cat([x.to(block.device) @ block.to(x.dtype) for block in W.split(step, dim=1)], -1).to(x)
    return y if b is None else y + b.to(y)


P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def no_autocast() -> Iterator[None]:
    """Outside autocast, which would compute products in half precision."""
    with ExitStack() as stack:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def no_autocast_no_grad(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function without gradients and outside autocast."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:  # not P.args: the beartype of TransformerLens 2 cannot read it
        with torch.no_grad(), no_autocast():
            return function(*args, **kwargs)

    return run
