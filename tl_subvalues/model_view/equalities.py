"""Equalities that must hold to rounding, and what rounding of each is measured by.

Those of one shape are compared together, so that a model of many layers is few large operations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError

# Numbers that are compared at a time: 4 MB in float32.
_COMPARED = 1 << 20


@dataclass(frozen=True)
class Equality:
    """Two tensors that are to be the same, each prompt's by its own measure."""

    layer: int
    what: str  # is wrong where they are not
    ours: Float[Tensor, "batch *rest"]
    theirs: Float[Tensor, "batch *rest"]
    tolerance: float  # of the size of a prompt's own entries in `theirs`, or of `size` where that is more
    size: "Float[Tensor, ' *batch'] | SizeOfSum | None" = None


@dataclass(frozen=True)
class SizeOfSum:
    """What rounding of a weighted sum is measured by: its size, were its terms not to cancel.

    Those of sums of one shape are worked out together.
    """

    coefficients: Float[Tensor, "batch n"]
    lengths: Float[Tensor, " n"]  # of the rows that they weigh, in the residual stream's space
    width: int  # entries of a row
    stretch: Sequence[float]  # by how much each prompt's rows are lengthened on their way

    @property
    def kind(self) -> tuple[Any, ...]:
        """What sizes have in common that can be worked out together."""
        return self.coefficients.shape, self.coefficients.dtype, self.coefficients.device, self.width


def require_equal(model: str, equalities: Iterable[Equality]) -> None:
    """Refuse a model unless all hold; an accelerator is waited for once.

    Raises:
        UnsupportedModelError: naming the first that does not.
    """
    measured: list[Measured] = []
    waiting: list[Equality] = []
    numbers = 0
    for one in equalities:
        waiting.append(one)
        numbers += one.theirs.numel() + (one.size.coefficients.numel() if isinstance(one.size, SizeOfSum) else 0)
        if numbers > _COMPARED:
            measured += _measured(waiting)
            waiting, numbers = [], 0
    measured += _measured(waiting)
    if not measured:
        return
    errors, sizes = torch.cat([one.errors for one in measured]), torch.cat([one.sizes for one in measured])
    counts = torch.tensor([len(one.errors) for one in measured])
    tolerances = torch.tensor([one.tolerance for one in measured], dtype=torch.float64).repeat_interleave(counts)
    if (errors <= tolerances.to(errors) * sizes).all():
        return
    for each in measured:
        held = each.errors <= each.tolerance * each.sizes
        if not held.all():
            worst = int(torch.nonzero(~held)[0])
            raise UnsupportedModelError(
                f"{model}: layer {each.layer} cannot be decomposed exactly: {each.what} (off by "
                f"{float(each.errors[worst]):.2g} where entries reach {float(each.sizes[worst]):.2g}), so it holds "
                "something that is not covered (a norm after the addition, a hook that edits activations, a sublayer "
                "of another kind)."
            )


@dataclass(frozen=True)
class Measured:
    """By how much two tensors differ, and what that is measured by, prompt by prompt."""

    layer: int
    what: str
    tolerance: float
    errors: Float[Tensor, " batch"]
    sizes: Float[Tensor, " batch"]


def _measured(equalities: Sequence[Equality]) -> list[Measured]:
    """Each equality's errors and sizes, in order; those of one shape are compared together."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, one in enumerate(equalities):
        size = one.size.kind if isinstance(one.size, SizeOfSum) else one.size is None
        kind = (one.theirs.shape, one.theirs.dtype, one.theirs.device, size)
        alike.setdefault(kind, []).append(number)
    found: dict[int, Measured] = {}
    for numbers in alike.values():
        chosen = [equalities[number] for number in numbers]
        errors, sizes = _differences(chosen)
        for number, one, error, size in zip(numbers, chosen, errors, sizes, strict=True):
            found[number] = Measured(one.layer, one.what, one.tolerance, error, size)
    return [found[number] for number in range(len(equalities))]


def _differences(alike: Sequence[Equality]) -> tuple[Float[Tensor, "n batch"], Float[Tensor, "n batch"]]:
    """The largest difference of each prompt of each equality, and the largest entry, or the equality's own size."""
    ours, theirs = torch.stack([one.ours for one in alike]), torch.stack([one.theirs for one in alike])
    if not theirs.numel():  # no positions
        return theirs.new_zeros(len(alike), 1), theirs.new_zeros(len(alike), 1)
    errors, sizes = (ours - theirs).flatten(2).abs().amax(2), theirs.flatten(2).abs().amax(2)
    given = [one.size for one in alike if one.size is not None]
    if not given:
        return errors, sizes
    sums = [one for one in given if isinstance(one, SizeOfSum)]
    plain = [one.expand(sizes.shape[1]) for one in given if isinstance(one, Tensor)]
    return errors, torch.maximum(sizes, (_sizes_of_sums(sums) if sums else torch.stack(plain)).to(sizes))


def _sizes_of_sums(alike: Sequence[SizeOfSum]) -> Float[Tensor, "n batch"]:
    """One row for each, all of one kind."""
    weights = torch.stack([one.coefficients for one in alike]).norm(dim=2)
    lengths = torch.stack([one.lengths.to(one.coefficients) for one in alike]).norm(dim=1, keepdim=True)
    stretches = torch.tensor([one.stretch for one in alike], dtype=weights.dtype, device=weights.device)
    return weights * (lengths / alike[0].width ** 0.5) * stretches
