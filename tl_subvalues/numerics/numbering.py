"""Items of several groups under one number: group by group, each group's in its own order."""

from collections.abc import Iterable
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor


class Numbering:
    """Numbers 0 to n − 1 for the items of groups of these sizes."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self._starts = list(accumulate(sizes, initial=0))
        self.starts: Int[Tensor, " groups_and_end"] = torch.tensor(self._starts)

    def __len__(self) -> int:
        return self._starts[-1]

    def span(self, group: int) -> slice:
        """The numbers of one group's items."""
        return slice(self._starts[group], self._starts[group + 1])

    def locate(self, number: Int[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Group of each item, and its index there."""
        starts = self.starts.to(number.device)
        group = torch.searchsorted(starts, number, right=True) - 1
        return group, number - starts[group]
