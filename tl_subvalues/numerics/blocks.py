"""How numbers are computed: outside autocast, and in blocks of one fixed size.

A matrix product may sum in another order when it has another number of rows, which changes the last bits. In blocks of
a fixed size, the last one filled up, a row gives the same bits whatever stands beside it.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

# Rows of weights converted at a time: 256 rows of 4,096 float32 numbers are 4 MB and stay in the cache.
CONVERTED = 256
# Numbers of a weight that are converted at a time: 16 million are 64 MB in float32.
_NUMBERS = 1 << 24


def padded(rows: Shaped[Tensor, "n *rest"], multiple: int) -> Shaped[Tensor, "padded *rest"]:
    """Rows filled up with zeros to a multiple."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def weighted_sum(
    weights: Float[Tensor, "*rest n"], rows: Shaped[Tensor, "n d_model"]
) -> Float[Tensor, "*rest d_model"]:
    """Weights @ rows in the weights' dtype, few rows converted at a time (7 times as fast for bfloat16 on a CPU)."""
    if (rows.dtype, rows.device) == (weights.dtype, weights.device):
        return weights @ rows
    at_once = CONVERTED if weights.device.type == rows.device.type == "cpu" else max(1, _NUMBERS // rows.shape[1])
    total = weights.new_zeros(*weights.shape[:-1], rows.shape[1])
    for part, block in zip(weights.split(at_once, -1), rows.split(at_once), strict=True):
        total += part @ block.to(weights)
    return total


def affine(x: Float[Tensor, "*rest d_in"], W: Tensor, b: Tensor | None) -> Float[Tensor, "*rest d_out"]:
    """X W + b, few columns of W converted at a time, where W is."""
    step = max(1, _NUMBERS // W.shape[0])
    y = torch.cat([x.to(block.device) @ block.to(x.dtype) for block in W.split(step, dim=1)], -1).to(x)
    return y if b is None else y + b.to(y)


def length_of_all(rows: Shaped[Tensor, "*rest"]) -> Shaped[Tensor, ""]:
    """At least the root of the sum of squares of all entries, in one pass over them in their own dtype."""
    return torch.linalg.vector_norm(rows) * (1 + 2 * torch.finfo(rows.dtype).eps)


def row_lengths(rows: Shaped[Tensor, "n d_model"], dtype: torch.dtype) -> Shaped[Tensor, " n"]:
    """The length of each row, in one pass over all; few numbers converted at a time (10 times as fast for bfloat16)."""
    if rows.dtype == dtype or rows.device.type != "cpu":
        lengths = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    elif _lies_in_columns(rows):
        squares = rows.new_zeros(len(rows), dtype=dtype)
        for block in rows.split(CONVERTED, dim=1):
            squares += block.to(dtype).pow(2).sum(1)
        lengths = squares.sqrt()
    else:
        lengths = torch.cat([torch.linalg.vector_norm(block.to(dtype), dim=1) for block in rows.split(CONVERTED)])
    return lengths * (1 + 2 * torch.finfo(rows.dtype).eps)


def inner_products(
    rows: Shaped[Tensor, "n d_model"], covectors: Float[Tensor, "d_model m"], at_once: int
) -> Float[Tensor, "n m"]:
    """Rows @ covectors in the covectors' dtype, so many rows at a time, fewer where they are converted on a CPU."""
    if rows.dtype == covectors.dtype or rows.device.type != "cpu":
        return torch.cat([block.to(covectors) @ covectors for block in rows.split(at_once)])
    if not _lies_in_columns(rows):
        return torch.cat([block.to(covectors) @ covectors for block in rows.split(CONVERTED)])
    total = covectors.new_zeros(len(rows), covectors.shape[1])
    for block, part in zip(rows.split(CONVERTED, dim=1), covectors.split(CONVERTED), strict=True):
        total += block.to(covectors) @ part
    return total


def _lies_in_columns(rows: Shaped[Tensor, "n d_model"]) -> bool:
    """Whether the numbers of a column are neighbours, as in a transposed Linear."""
    return rows.stride(0) == 1 and rows.stride(1) != 1


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
