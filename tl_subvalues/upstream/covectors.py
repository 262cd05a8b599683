"""Covectors at a place: what the parts that are added there are multiplied with, at every position.

An activation score takes one neuron's subkey, a query score a weighted sum of subkeys, a total effect the measure's
gradient led back through the rest of the model, an edge of the graph a subkey led back through attention and norms.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Covectors:
    """Of the parts that one sublayer adds, many covectors at a time."""

    layer: int
    sublayer: str
    output: Float[Tensor, "n pos d_model"]  # of what enters the residual stream
    # The same in the sublayer's own space: of z, of the coefficients, of each expert's; none of a mixer.
    inner: tuple[Float[Tensor, "n pos ..."], ...]
    bias: Float[Tensor, " n"] | None = None  # what the bias terms on the way through the sublayer add, where known


@dataclass(frozen=True)
class Entering:
    """Of what enters layer 0."""

    output: Float[Tensor, "n pos d_model"]
