"""Rows of a weight: sums of them, products with them, and their lengths, in the dtype that is computed in.

Weights stay in the model's own dtype. On a CPU few of their numbers are converted at a time, in the order that they lie
in, and stay in the cache.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tl_subvalues.numerics.blocks import in_blocks, joined

# Rows converted at a time: 256 rows of 4,096 float32 numbers are 4 MB.
CONVERTED = 256
# Numbers converted at a time where those of a column are neighbours: 1.4 MB, as 32 columns of 11,008 (half the time of
# 256 columns).
IN_CACHE = 32 * 11_008
# Numbers squared at a time: 4 MB in float32.
_SQUARED = 1 << 20
# Numbers converted at a time elsewhere: 16 million are 64 MB in float32.
_NUMBERS = 1 << 24


class WeightRows:
    """The rows of one weight. Every sum measures their lengths anew, for all that asks for them after it.

    Weights may have been written to since, unseen (through `.data`): what a check goes by is of its own time.
    """

    def __init__(self, rows: Shaped[Tensor, "n d_model"]) -> None:
        self.rows = rows

    @cached_property
    def lengths(self) -> Float[Tensor, " n"]:
        """At least the length of each row, in float32 or better; measured here only before the first sum."""
        return row_lengths(self.rows, torch.promote_types(self.rows.dtype, torch.float32))

    def sum(self, weights: Float[Tensor, "*rest n"]) -> Float[Tensor, "*rest d_model"]:
        """Weights @ rows, in the weights' dtype."""
        total, self.lengths = sum_and_lengths(weights, self.rows)
        return total


def weighted_sum(
    weights: Float[Tensor, "*rest n"], rows: Shaped[Tensor, "n d_model"]
) -> Float[Tensor, "*rest d_model"]:
    """Weights @ rows in the weights' dtype, few rows converted at a time (7 times as fast for bfloat16 on a CPU)."""
    if (rows.dtype, rows.device) == (weights.dtype, weights.device):
        return weights @ rows
    if rows.device.type == weights.device.type == "cpu" and _lies_in_columns(rows):
        return torch.cat([weights @ block.T for block in _columns(rows, weights.dtype)], -1)
    at_once = CONVERTED if weights.device.type == rows.device.type == "cpu" else max(1, _NUMBERS // rows.shape[1])
    total = weights.new_zeros(*weights.shape[:-1], rows.shape[1])
    for part, block in zip(weights.split(at_once, -1), rows.split(at_once), strict=True):
        total += part @ block.to(weights)
    return total


def row_lengths(rows: Shaped[Tensor, "n d_model"], dtype: torch.dtype) -> Shaped[Tensor, " n"]:
    """At least the length of each row, in one pass over all (10 times as fast for bfloat16 as one by one)."""
    if rows.device.type == "cpu" and _lies_in_columns(rows):
        if rows.dtype == dtype:  # vector_norm along memory's long way takes 10 times as long
            blocks = in_blocks(rows.T, max(1, _SQUARED // max(1, len(rows))))
            each = [block.square().sum(0) for block in blocks]
            lengths = (each[0] if len(each) == 1 else torch.stack(each).sum(0)).sqrt()
        else:
            squares = rows.new_zeros(len(rows), dtype=dtype)
            for block in _columns(rows, dtype):
                _add_squares(squares, block)
            lengths = squares.sqrt()
    elif rows.dtype == dtype or rows.device.type != "cpu":
        lengths = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    else:
        lengths = torch.cat([torch.linalg.vector_norm(block.to(dtype), dim=1) for block in rows.split(CONVERTED)])
    return _at_least(lengths, rows)


def sum_and_lengths(
    weights: Float[Tensor, "*rest n"], rows: Shaped[Tensor, "n d_model"]
) -> tuple[Float[Tensor, "*rest d_model"], Float[Tensor, " n"]]:
    """`weighted_sum` and `row_lengths` in the weights' dtype; converted once where that is most of the work."""
    on_cpu = rows.device.type == weights.device.type == "cpu"
    if rows.dtype == weights.dtype or not (on_cpu and _lies_in_columns(rows)):
        return weighted_sum(weights, rows), row_lengths(rows, weights.dtype)
    squares, parts = weights.new_zeros(len(rows)), []
    for block in _columns(rows, weights.dtype):
        parts.append(weights @ block.T)
        _add_squares(squares, block)
    return torch.cat(parts, -1), _at_least(squares.sqrt(), rows)


def length_of_all(rows: Shaped[Tensor, "*rest"]) -> Shaped[Tensor, ""]:
    """At least the root of the sum of squares of all entries, in one pass over them in their own dtype."""
    return _at_least(torch.linalg.vector_norm(rows), rows)


def inner_products(
    rows: Shaped[Tensor, "n d_model"], covectors: Float[Tensor, "d_model *m"], at_once: int
) -> Float[Tensor, "n *m"]:
    """Rows @ covectors in the covectors' dtype, so many rows at a time, fewer where they are converted on a CPU."""
    if rows.dtype == covectors.dtype or rows.device.type != "cpu":
        return joined([block.to(covectors) @ covectors for block in in_blocks(rows, at_once)])
    if covectors.ndim == 1:
        return inner_products(rows, covectors[:, None], at_once)[:, 0]
    if not _lies_in_columns(rows):
        return torch.cat([block.to(covectors) @ covectors for block in rows.split(CONVERTED)])
    total, here = rows.new_zeros(len(rows), covectors.shape[1], dtype=covectors.dtype), covectors.to(rows.device)
    for block, part in zip(_columns(rows, covectors.dtype), here.split(_at_once(rows)), strict=True):
        total.addmm_(block.T, part)
    return total.to(covectors.device)


def _columns(rows: Shaped[Tensor, "n d_model"], dtype: torch.dtype) -> Iterator[Shaped[Tensor, "_ n"]]:
    """A few converted columns at a time, as rows of one buffer: each is good until the next, and may be used up."""
    buffer = rows.new_empty(_at_once(rows), len(rows), dtype=dtype)
    for block in rows.T.split(_at_once(rows)):
        yield buffer[: len(block)].copy_(block)


def _at_once(rows: Shaped[Tensor, "n d_model"]) -> int:
    """How many columns."""
    return max(1, IN_CACHE // max(1, len(rows)))


def _add_squares(squares: Float[Tensor, " n"], block: Float[Tensor, "_ n"]) -> None:
    """Add each row's own squares, from some of its columns, which are used up."""
    squares.addmv_(block.square_().T, block.new_ones(len(block)))


def _at_least(lengths: Shaped[Tensor, "*n"], rows: Tensor) -> Shaped[Tensor, "*n"]:
    """Lengths, and what rounding of them may have taken away."""
    return lengths * (1 + 2 * torch.finfo(rows.dtype).eps)


def _lies_in_columns(rows: Shaped[Tensor, "n d_model"]) -> bool:
    """Whether the numbers of a column are neighbours, as in a transposed Linear."""
    return rows.stride(0) == 1 and rows.stride(1) != 1
