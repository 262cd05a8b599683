"""Rows worked on in blocks of one fixed size.

A matrix product may sum in another order when it has another number of rows, which changes the last bits. In blocks of
a fixed size, the last one filled up, a row gives the same bits whatever stands beside it.
"""

import torch
from jaxtyping import Shaped
from torch import Tensor


def padded(rows: Shaped[Tensor, "n *rest"], multiple: int) -> Shaped[Tensor, "padded *rest"]:
    """Rows filled up with zeros to a multiple."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows
