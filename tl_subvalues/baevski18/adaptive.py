"""Adaptive input and adaptive softmax (arXiv 1809.10853, section 3): word vectors that are narrower the rarer the word.

Factors are never multiplied out: word vectors of band b have width d_model / factor**b; a projection leads to d_model.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_subvalues.baevski18.configuration import Baevski18Config
from tl_subvalues.numerics.softmax import Columns


class AdaptiveInput(nn.Module):
    """Word v of band b is embedded as sqrt(d_model) * P_b E_b[v - start_b]."""

    words: Any  # of each band
    projections: Any

    def __init__(self, shape: Baevski18Config) -> None:
        super().__init__()
        self.shape = shape
        self.scale = math.sqrt(shape.d_model)
        self.words = nn.ModuleList(nn.Embedding(band.size, band.width) for band in shape.bands)
        self.projections = nn.ModuleList(nn.Linear(band.width, shape.d_model, bias=False) for band in shape.bands)

    def forward(self, ids: Int[Tensor, "*rest"]) -> Float[Tensor, "*rest d_model"]:
        """Embed token ids.

        Raises:
            ValueError: for an id outside the vocabulary, which fairseq would read as something else.
        """
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.shape.d_vocab):
            raise ValueError(
                f"token ids run from 0 to {self.shape.d_vocab - 1}, got {int(ids.min())} to {int(ids.max())}."
            )
        embedded = self.projections[0].weight.new_empty(*ids.shape, self.shape.d_model)
        for band, words, projection in zip(self.shape.bands, self.words, self.projections, strict=True):
            chosen = (ids >= band.start) & (ids < band.stop)
            embedded[chosen] = self.scale * projection(words(ids[chosen] - band.start))
        return embedded

    def dense(self) -> Float[Tensor, "vocab d_model"]:
        """The embedding multiplied out, one row a word: 1.1 GB at full size."""
        pairs = zip(self.words, self.projections, strict=True)
        return torch.cat([self.scale * projection(words.weight) for words, projection in pairs])


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities: of a head (words of band 0 and one class for each rarer band), and within each rarer band.

    Band 0 is read by its word vectors alone, without P_0; band b through A_b, which is P_b transposed or, untied, a
    projection of its own. The word vectors are the embedding's.
    """

    classes: Any  # one column for each rarer band; None without one
    projections: Any  # A_b, where untied

    def __init__(self, shape: Baevski18Config, embedding: AdaptiveInput) -> None:
        super().__init__()
        self.shape = shape
        self._embedding = (embedding,)  # in a tuple: its parameters are not this module's a second time
        tails = shape.bands[1:]
        self.classes = nn.Linear(shape.d_model, len(tails), bias=False) if tails else None
        own = [] if shape.tied_projections else tails
        self.projections = nn.ModuleList(nn.Linear(shape.d_model, band.width, bias=False) for band in own)

    def softmaxes(self) -> tuple[Columns, ...]:
        """The weights of the head's softmax and of each band's, as a readout takes them; views, nothing copied."""
        (embedding,) = self._embedding
        words = [table.weight.detach().T for table in embedding.words]
        classes = [] if self.classes is None else [self.classes.weight.detach().T]
        head = Columns((words[0], *classes))
        bands = range(1, len(words))
        return (head, *(Columns((words[b],), into=self._down(b).detach().T) for b in bands))

    def forward(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Log-probabilities of all words."""
        (embedding,) = self._embedding
        words = [table.weight for table in embedding.words]
        head = nn.functional.linear(residual, words[0])
        if self.classes is None:
            return head.log_softmax(-1)
        head = torch.cat([head, self.classes(residual)], -1).log_softmax(-1)
        first = len(words[0])
        log_probs = [head[..., :first]]
        for b in range(1, len(words)):
            inside = nn.functional.linear(nn.functional.linear(residual, self._down(b)), words[b]).log_softmax(-1)
            log_probs.append(inside + head[..., first + b - 1, None])
        return torch.cat(log_probs, -1)

    def _down(self, band: int) -> Float[Tensor, "width d_model"]:
        """A_b."""
        if self.shape.tied_projections:
            return self._embedding[0].projections[band].weight.T
        return self.projections[band - 1].weight

    def dense(self) -> Float[Tensor, "vocab d_model"]:
        """One row a word multiplied out, 1.1 GB at full size; x @ dense.T is no logit: softmaxes are several."""
        (embedding,) = self._embedding
        words = [table.weight for table in embedding.words]
        return torch.cat([words[0], *(words[b] @ self._down(b) for b in range(1, len(words)))])

    def dense_bias(self) -> Float[Tensor, " vocab"]:
        """Zeros: no projection here has a bias."""
        return self._embedding[0].words[0].weight.new_zeros(self.shape.d_vocab)
