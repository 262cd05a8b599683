"""Attention and FFN outputs taken apart into subvalues that add up to them (arXiv 2312.12141, section 3).

    attention output at query q = sum over heads h, source positions p, indices i of  z_p[h, i] * W_O[h, i]  + b_O,
                                  z_p[h] = pattern[h, q, p] * v[h, p]
    FFN output                  = sum over neurons n of  m_n * W_out[n]  + b_out
    mixture of experts          = sum over experts e, neurons n of  w_e m_{e,n} * W_out[e, n]  + sum over e of  w_e b_e

What stands between the sublayer and the residual stream (a post-norm, a multiplier) is applied to each subvalue with
its scale frozen at the run's value. A `Subvalues` object is one sublayer's parts at one position, made on request
and never all at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.numerics.blocks import padded
from tl_subvalues.numerics.norms import Passage
from tl_subvalues.numerics.numbering import Numbering
from tl_subvalues.numerics.weight_rows import WeightRows, inner_products

# Rows of weights converted at a time: 2,048 rows of 4,096 numbers are 32 MB.
ROWS = 2048
# Source positions of a head made at a time.
_SOURCES = 32


@runtime_checkable
class Subvalues(Protocol):
    """The parts of one sublayer's output at one position, in a fixed order."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts, as they enter the residual stream."""
        ...

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part, without making the parts."""
        ...

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part; `linear` maps [n, d_model] row by row."""
        ...

    def longest(self) -> Float[Tensor, " all"]:
        """At least ‖v‖ for every part, made in one quick pass; for error estimates."""
        ...


@dataclass(frozen=True)
class WholeSubvalues:
    """Parts few enough to be held: sublayer outputs, heads."""

    stack: Float[Tensor, "component d_model"]

    def __len__(self) -> int:
        return len(self.stack)

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts."""
        return self.stack[index]

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part."""
        return self.stack @ covector

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part."""
        return linear(self.stack).norm(dim=-1)

    def longest(self) -> Float[Tensor, " all"]:
        """‖v‖ for every part."""
        return self.stack.norm(dim=-1)


@dataclass(frozen=True)
class NeuronSubvalues:
    """coefficient * direction, part i along direction i modulo their number.

    FFN neurons: one direction (row of W_out) each. Attention neurons: the rows of W_O, head by head, once per
    source position. Directions stay in the model's own dtype; only rows in use are converted.
    """

    coefficients: Float[Tensor, " component"]
    directions: Tensor  # [direction, d_model], the model's own weights
    passage: Passage
    scale: Float[Tensor, " 1"] | None
    measured: WeightRows | None = None  # the directions again, where something else measures their lengths

    def __len__(self) -> int:
        return len(self.coefficients)

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts."""
        several = len(self.coefficients) > len(self.directions)
        chosen = (index % len(self.directions) if several else index).to(self.directions.device)
        rows = self.directions[chosen].to(self.coefficients)
        return self.passage.carry(self.coefficients[index, None] * rows, self.scale)

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part: one product with the directions, however many source positions there are."""
        pulled_back = self.passage.transposed(covector, self.scale)
        return self.times_each(inner_products(self.directions, pulled_back, ROWS))

    def times_each(self, of_directions: Float[Tensor, " direction"]) -> Float[Tensor, " all"]:
        """Every part's coefficient times the number that its direction has."""
        if len(self.coefficients) == len(of_directions):
            return self.coefficients * of_directions
        return (self.coefficients.view(-1, len(of_directions)) * of_directions).flatten()

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part, from the norms of the directions."""
        blocks = self.directions.split(ROWS)
        each = [linear(self.passage.carry(rows.to(self.coefficients), self.scale)).norm(dim=-1) for rows in blocks]
        norms = torch.cat(each)
        return (self.coefficients.abs().view(-1, len(norms)) * norms).flatten()

    def longest(self) -> Float[Tensor, " all"]:
        """|coefficient| times the length of its direction, as the passage may stretch it."""
        return self.stretched(self.times_each(self.direction_lengths()))

    def stretched(self, lengths: Float[Tensor, " all"]) -> Float[Tensor, " all"]:
        """Lengths of the parts, some negative, in the residual stream, as the passage may stretch them; used up."""
        stretch = self.passage.stretch(self.scale)
        return lengths.abs_() if stretch == 1.0 else lengths.abs_().mul_(stretch)

    def direction_lengths(self) -> Float[Tensor, " direction"]:
        """At least the length of each direction."""
        rows = WeightRows(self.directions) if self.measured is None else self.measured
        return rows.lengths.to(self.coefficients)


@dataclass(frozen=True)
class JoinedSubvalues:
    """Several neurons' subvalues one after the other, as one sublayer's: the experts of a mixture."""

    groups: tuple[NeuronSubvalues, ...]

    @cached_property
    def numbering(self) -> Numbering:
        """Number of each part, group by group."""
        return Numbering(len(group) for group in self.groups)

    @cached_property
    def coefficients(self) -> Float[Tensor, " component"]:
        """Coefficients of all parts."""
        return torch.cat([group.coefficients for group in self.groups])

    def __len__(self) -> int:
        return len(self.numbering)

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts."""
        group, inside = self.numbering.locate(index)
        result = self.groups[0].coefficients.new_empty(len(index), self.groups[0].directions.shape[1])
        for number in group.unique().tolist():
            result[group == number] = self.groups[number].vectors(inside[group == number])
        return result

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part."""
        return torch.cat([group.inner_products(covector) for group in self.groups])

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part."""
        return torch.cat([group.norms(linear) for group in self.groups])

    def longest(self) -> Float[Tensor, " all"]:
        """At least ‖v‖ for every part."""
        return torch.cat([group.longest() for group in self.groups])


@dataclass(frozen=True)
class HeadPositionSubvalues:
    """What each head writes from each source position, heads outermost: part h * n_sources + p."""

    weighted: Float[Tensor, "head source d_head"]  # pattern * v
    W_O: Tensor  # [head, d_head, d_model], the model's own weights
    passage: Passage
    scale: Float[Tensor, " 1"] | None

    def __len__(self) -> int:
        return self.weighted.shape[0] * self.weighted.shape[1]

    def vectors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """The chosen parts."""
        heads, sources = index // self.weighted.shape[1], index % self.weighted.shape[1]
        result = self.weighted.new_empty(len(index), self.W_O.shape[2])
        for head in heads.unique().tolist():
            mine, W_O = heads == head, self.W_O[head].to(self.weighted)
            # Always so many rows at a time, so that a part's bits do not depend on what is made with it.
            rows = padded(self.weighted[head, sources[mine]], _SOURCES)
            made = torch.cat([block @ W_O for block in rows.split(_SOURCES)])
            result[mine] = made[: int(mine.sum())]
        return self.passage.carry(result, self.scale)

    def inner_products(self, covector: Float[Tensor, " d_model"]) -> Float[Tensor, " all"]:
        """<covector, v> for every part, through W_O first."""
        pulled_back = self.W_O.to(covector) @ self.passage.transposed(covector, self.scale)
        return einops.einsum(self.weighted, pulled_back, "head source d_head, head d_head -> head source").flatten()

    def norms(self, linear: Callable[[Tensor], Tensor]) -> Float[Tensor, " all"]:
        """‖linear(v)‖ for every part, the parts made in blocks."""
        blocks = torch.arange(len(self), device=self.weighted.device).split(ROWS)
        return torch.cat([linear(self.vectors(index)).norm(dim=-1) for index in blocks])

    def longest(self) -> Float[Tensor, " all"]:
        """Length of z times that of its head's W_O, as the passage may stretch it."""
        heads = torch.linalg.vector_norm(self.W_O.flatten(1), dim=1, dtype=self.weighted.dtype).to(self.weighted)
        return (self.weighted.norm(dim=-1) * heads[:, None]).flatten() * self.passage.stretch(self.scale)


def weighted_values(
    pattern: Float[Tensor, "*rest head source"], values: Float[Tensor, "*rest source head d_head"]
) -> Float[Tensor, "*rest source head d_head"]:
    """z_p = pattern * v: what each head takes from each source position, for one query position."""
    return values * einops.rearrange(pattern, "... head source -> ... source head 1")  # laid out as the values are
