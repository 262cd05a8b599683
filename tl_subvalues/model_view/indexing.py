"""Positions, neurons and other indices as users and TransformerLens write them, checked against a size."""

import operator
from typing import Any

import torch
from torch import Tensor

Positions = int | slice | Tensor


def index_of(selection: Any, size: int, what: str) -> Positions:
    """TransformerLens's slice input (int, tuple, list, array, mask, slice or None) as an index into an axis of `size`.

    Raises:
        ValueError: for an index out of range, or anything else than integers and masks.
    """
    selection = getattr(selection, "slice", selection)  # TransformerLens's own Slice
    if selection is None:
        return slice(None)
    if isinstance(selection, slice):
        return selection
    if isinstance(selection, tuple):
        return slice(*selection)
    if isinstance(selection, str | bool):
        raise ValueError(f"{what}s are an int, a slice, a tuple, a list, a mask or None, got {selection!r}.")
    try:
        chosen = torch.as_tensor(selection)
    except (TypeError, ValueError, RuntimeError) as error:
        message = f"{what}s are an int, a slice, a tuple, a list, a mask or None, got {selection!r}."
        raise ValueError(message) from error
    if chosen.dtype == torch.bool and chosen.shape == (size,):
        return chosen.nonzero().flatten()
    if chosen.numel() and (chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool):
        raise ValueError(f"{what}s are integers or a mask of length {size}, got {selection!r}.")
    if chosen.ndim == 0:
        return resolve_index(chosen.item(), size, what)
    return torch.tensor([resolve_index(i, size, what) for i in chosen.tolist()], dtype=torch.long)


def whole_number(given: Any, what: str, least: int = 1) -> int:
    """A number as Python's int, whoever's it is: numpy's, out of a table, too.

    Raises:
        ValueError: if it is no whole number, or less than `least`, 1 or 0.
    """
    number = operator.index(given) if hasattr(given, "__index__") and not isinstance(given, bool) else None
    if number is None or number < least:
        raise ValueError(f"{what} is a {'positive number' if least else 'whole number from 0 on'}, got {given!r}.")
    return number


def resolve_index(index: Any, size: int, what: str) -> int:
    """An index counted from the front.

    Raises:
        ValueError: if it is out of range, or no integer.
    """
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise ValueError(f"{what} is an integer, got {index!r}.")
    number = operator.index(index)
    if not -size <= number < size:
        raise ValueError(f"{what} {number} is out of range: there are {size}, so it runs from {-size} to {size - 1}.")
    return number % size
