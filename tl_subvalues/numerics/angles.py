"""Angles between vectors and a softmax's columns, after what all columns share has been taken from each.

    cos(v, t) = ⟨v, u_t − ū⟩ / (‖v‖ ‖u_t − ū‖),    ū the mean of the columns

A bs-value ⟨v, u_t⟩ is long where the column is: a few words with long columns head the list of any vector. The cosine
asks for the direction alone. Where columns lie in a space of their own, all is measured in the residual stream's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.numerics.softmax import Softmax


@dataclass(frozen=True)
class Angles:
    """The first classes of a softmax, seen from their mean; made by `angles_of`."""

    softmax: Softmax
    mean: Float[Tensor, " width"]  # of their columns as they are stored
    lengths: Float[Tensor, " word"]  # ‖u − ū‖ of each, in the residual stream's space

    def panels(self, lin: Float[Tensor, "n d_model"]) -> Iterator[tuple[slice, Float[Tensor, "n _"]]]:
        """Cosines with all words, some thousand at a time; 0 for a vector or a column of no length."""
        stretch = torch.where(self.lengths > 0, self.softmax.factor / self.lengths, 0.0)
        for words, products in self.softmax.panels(directions(lin), len(stretch), self._centred):
            yield words, products.mul_(stretch[words]).clamp_(-1.0, 1.0)

    def cosines_with(self, lin: Float[Tensor, "n d_model"], words: Sequence[int]) -> Float[Tensor, "n chosen"]:
        """Cosines with some words, read by their own columns."""
        centred = self.softmax.columns(words) - self.mean * self.softmax.factor
        columns = directions(self.softmax.pulled_back(centred))
        return (directions(lin) @ columns.T).clamp_(-1.0, 1.0)

    def _centred(self, W: Float[Tensor, "width _"]) -> Float[Tensor, "width _"]:
        # The mean is taken from the columns, not from the products: of nearly equal columns these keep no digits.
        return W - self.mean[:, None]


def angles_of(softmax: Softmax, n_words: int) -> Angles:
    """The angles to the first `n_words` classes of a softmax: two passes over their columns."""
    total = torch.zeros((), dtype=torch.float64)
    for words, W in softmax.blocks():
        total = total.to(W.device) + W[:, : max(0, n_words - words.start)].sum(1, dtype=torch.float64)
    mean = (total / n_words).to(W)
    # ‖P c‖² = cᵀ PᵀP c where P leads columns to the residual stream's space.
    gram = None
    if softmax.in_own_space:
        led = softmax.pulled_back(torch.eye(len(mean), dtype=mean.dtype, device=mean.device))
        gram = led @ led.T
    lengths = []
    for words, W in softmax.blocks():
        centred = W[:, : max(0, n_words - words.start)] - mean[:, None]
        squares = centred.pow(2) if gram is None else centred * (gram @ centred)
        lengths.append(squares.sum(0).clamp(min=0).sqrt())
    return Angles(softmax, mean, torch.cat(lengths) * abs(softmax.factor))


def directions(vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    """Vectors at length one, in any dtype's range; those of no length stay so."""
    exact = vectors.double()
    lengths = exact.norm(dim=-1, keepdim=True)
    return (exact / torch.where(lengths > 0, lengths, 1.0)).to(vectors)
