"""How numbers are computed: in full precision, and in blocks of one fixed size.

A matrix product may sum in another order when it has another number of rows, which changes the last bits. In blocks of
a fixed size, the last one filled up, a row gives the same bits whatever stands beside it.
"""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor


def padded(rows: Shaped[Tensor, "n *rest"], multiple: int) -> Shaped[Tensor, "padded *rest"]:
    """Rows filled up with zeros to a multiple."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


P = ParamSpec("P")
T = TypeVar("T")


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function without autocast, which would turn its products into half precision, and without gradients."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run
