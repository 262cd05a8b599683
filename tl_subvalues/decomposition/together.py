"""The same sublayer's parts in several runs of one model: what their weights have in common is multiplied once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.subvalues import ROWS, NeuronSubvalues, Subvalues
from tl_subvalues.numerics.weight_rows import inner_products


def inner_products_together(
    many: Sequence[Subvalues], covectors: Sequence[Float[Tensor, " d_model"]]
) -> list[Float[Tensor, " _"]]:
    """`Subvalues.inner_products` of each run's parts with its own covector."""
    neurons = _of_same_neurons(many)
    if neurons is None:
        return [parts.inner_products(covector) for parts, covector in zip(many, covectors, strict=True)]
    pairs = zip(neurons, covectors, strict=True)
    pulled_back = [parts.passage.transposed(covector, parts.scale) for parts, covector in pairs]
    if len(pulled_back) == 1:
        return [neurons[0].times_each(inner_products(neurons[0].directions, pulled_back[0], ROWS))]
    products = inner_products(neurons[0].directions, torch.stack(pulled_back, 1), ROWS).T.contiguous()
    return [parts.times_each(own) for parts, own in zip(neurons, products, strict=True)]


def longest_together(many: Sequence[Subvalues]) -> list[Float[Tensor, " _"]]:
    """`Subvalues.longest` of each run's parts."""
    neurons = _of_same_neurons(many)
    if neurons is None:
        return [parts.longest() for parts in many]
    lengths = neurons[0].direction_lengths()
    return [parts.stretched(parts.times_each(lengths)) for parts in neurons]


def _of_same_neurons(many: Sequence[Subvalues]) -> list[NeuronSubvalues] | None:
    """The parts, where all are neurons with the same rows of weights."""
    neurons = [parts for parts in many if isinstance(parts, NeuronSubvalues)]
    places = {(one.directions.data_ptr(), one.directions.shape, one.directions.stride()) for one in neurons}
    return neurons if len(neurons) == len(many) and len(places) == 1 else None
