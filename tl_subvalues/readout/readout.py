"""The residual stream in vocabulary space: final norm, unembedding, log-softmax (arXiv 2312.12141, section 3).

    readout(x) = N(x) W_U + b_U,    log p(w | x) = readout(x)_w − log Σ_t exp readout(x)_t

with N the model's final norm, gain and bias included. An adaptive softmax has several such softmaxes
(`numerics/softmax.py`); what is asked of them is a target (`targets.py`), as the softmaxes see it a measure. The scale
of N is a choice: *frozen* at one run's final residual stream (N is then affine, and so are the logits unless
capped) or *recomputed* from each x (the logit lens).
"""

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import Activations, ModelView, ReadoutPieces, view_of
from tl_subvalues.numerics.angles import Angles, angles_of
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.numerics.softmax import ClosedSoftmax, Softmax, log_softmax
from tl_subvalues.readout.measures import Vocabulary
from tl_subvalues.readout.targets import Target

Scale = Literal["frozen", "recomputed"]


def require_scale(scale: str) -> None:
    """Refuse a scale that is neither "frozen" nor "recomputed"."""
    if scale not in get_args(Scale):
        raise ValueError(f"scale is 'frozen' or 'recomputed', got {scale!r}.")


class Readout:
    """Reads vectors of the residual stream in vocabulary space, under one choice of the final norm's scale.

    Args:
        model: a TransformerLens model.
        scale: "recomputed", or the frozen scale, a tensor that broadcasts to [*rest, 1] for residuals [*rest, d_model],
            such as `cache["ln_final.hook_scale"][:, -1]`; ignored by a model without a final norm.

    Raises:
        UnsupportedModelError: if something else than the final norm stands before the unembedding.
        ValueError: for any other `scale`.
    """

    def __init__(self, model: Any, *, scale: Tensor | float | str) -> None:
        if isinstance(scale, str) and scale != "recomputed":
            raise ValueError(f"scale is a tensor or 'recomputed', got {scale!r}.")
        if not isinstance(scale, str) and (isinstance(scale, bool) or not _is_positive(scale)):
            raise ValueError(f"a frozen scale is a positive, finite number or a tensor of such, got {scale!r}.")
        view = view_of(model)
        self._name = view.name
        self._pieces: ReadoutPieces = view.readout
        self._dtype = view.compute_dtype
        self._device = view.device
        self.softmaxes: tuple[Softmax, ...] = self._make_softmaxes()
        self.scale: Tensor | None = (
            None if isinstance(scale, str) else torch.as_tensor(scale).detach().to(self._device, self._dtype)
        )

    @classmethod
    def frozen_at(cls, view: ModelView, activations: Activations, position: int) -> "Readout":
        """The readout with its scale frozen at one position of a run of one prompt."""
        scale = activations.final_scale(position)
        return cls(view, scale=1.0 if scale is None else scale[0])

    @property
    def frozen(self) -> bool:
        """Whether the final norm's scale is frozen (or there is no final norm), which makes N affine."""
        return self.scale is not None or self._pieces.norm is None

    @property
    def affine(self) -> bool:
        """Whether logits are affine in the residual stream: scale frozen, no soft cap, a plain unembedding."""
        return self.frozen and self.bounded

    @property
    def bounded(self) -> bool:
        """Whether Jensen's bound on increases holds: logits affine in N(x), whatever is done with the scale."""
        return self._pieces.soft_cap is None and bool(self._pieces.softmaxes)

    @property
    def block_sizes(self) -> tuple[int, int]:
        """Vectors and words that are read at a time on this device."""
        return self.softmaxes[0].block_sizes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def n_bands(self) -> int:
        """Pieces that the vocabulary is cut into, each with a softmax of its own; 1 in most models."""
        return len(self.softmaxes)

    @cached_property
    def angles(self) -> tuple[Angles, ...]:
        """Angles between vectors through the norm and the words, piece by piece.

        Raises:
            UnsupportedModelError: if the unembedding can only be called, so that words have no columns.
        """
        self.require_columns()
        head, *bands = self.softmaxes
        sizes = [head.n_classes - len(bands), *(band.n_classes for band in bands)]
        return tuple(angles_of(softmax, n) for softmax, n in zip(self.softmaxes, sizes, strict=True))

    def columns(self, ids: Sequence[int]) -> Float[Tensor, "word d_model"]:
        """The readout columns of words, in the residual stream's space: bs-values are lin @ column.

        Raises:
            UnsupportedModelError: as `angles`.
        """
        self.require_columns()
        head, found = self.softmaxes[0], []
        for number, index in map(self.vocabulary.place_of, ids):
            softmax = self.softmaxes[number]
            column = softmax.pulled_back(softmax.column(index))
            found.append(column if number == 0 else column + head.column(head.n_classes - self.n_bands + number))
        return torch.stack(found)

    def require_columns(self) -> None:
        """Raise unless words can be read by columns of their own.

        Raises:
            UnsupportedModelError: naming the model.
        """
        if not self.softmaxes[0].has_columns:
            raise UnsupportedModelError(
                f"the unembedding of {self._name} can only be called, so its words have no columns: bs-values of a "
                "trace's components can be read, as by trace.writes(labels, by='bs_value'); cosines cannot."
            )

    def piece(self, token: int) -> slice:
        """The words of the piece of the vocabulary that a word is in."""
        number, index = self.vocabulary.place_of(token)
        n_words = self.softmaxes[number].n_classes - (self.n_bands - 1 if number == 0 else 0)
        return slice(token - index, token - index + n_words)

    def band(self, token: int) -> int:
        """Which piece of the vocabulary a word is in: 0 for the head, and for every word where there is one piece."""
        number, _ = self.vocabulary.place_of(token)
        return number

    @property
    def vocabulary(self) -> Vocabulary:
        """Its words as classes of its softmaxes."""
        return Vocabulary(self.softmaxes)

    @property
    def d_vocab(self) -> int:
        """Number of words."""
        return self._pieces.d_vocab

    @no_autocast_no_grad
    def logits(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Logits as the model would compute them from this residual stream (an adaptive softmax's are log-probs)."""
        if self._pieces.normalised:
            return self.log_probs(residual)
        return self.softmaxes[0].logits(self.normed(residual))

    @no_autocast_no_grad
    def log_probs(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Log-probabilities of all words, in nats."""
        normed = self.normed(residual)
        return self.over_words([log_softmax(softmax.logits(normed)) for softmax in self.softmaxes])

    @no_autocast_no_grad
    def log_prob(self, residual: Float[Tensor, "*rest d_model"], token: int) -> Float[Tensor, "*rest"]:
        """Log-probability of one word, in nats; the vocabulary is read in blocks.

        Raises:
            ValueError: if the word is outside the vocabulary.
        """
        self.require_word(token)
        normed = self.normed(residual)
        flat = normed.reshape(-1, normed.shape[-1])
        return self.vocabulary.log_prob((token,)).value(flat).reshape(normed.shape[:-1])

    @no_autocast_no_grad
    def bs_values(self, vectors: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Before-softmax values of vectors: the linear part of N(v) W_U, biases left out (section 3 of the paper).

        With the scale recomputed, each vector's own scale is used. Of an adaptive softmax: a rarer word's value in its
        band plus its band's value in the head. Values of one band can be compared; those of two bands only up to what
        shifts a whole band, which its own normalisation takes out.
        """
        lin = self.linear(vectors)
        return self.over_words([softmax.bs_values(lin) for softmax in self.softmaxes])

    def bs_panels(self, vectors: Float[Tensor, "n d_model"]) -> Iterator[tuple[slice, Float[Tensor, "n _"]]]:
        """`bs_values` of all words in order, some thousand words at a time."""
        lin, (head, *bands) = self.linear(vectors), self.softmaxes
        first = n_head = head.n_classes - len(bands)
        yield from head.bs_panels(lin, n_head)
        for number, band in enumerate(bands):
            share = head.bs_value(lin, n_head + number).to(lin)
            for words, values in band.bs_panels(lin, band.n_classes):
                yield slice(first + words.start, first + words.stop), values.add_(share[:, None])
            first += band.n_classes

    def at(self, row: int, shape: torch.Size) -> "Readout":
        """The readout of one row of residuals [*shape, d_model], rows counted as if `shape` were flattened."""
        if self.scale is None:
            return self
        chosen = copy.copy(self)
        scale = self.scale
        try:
            scale.expand(*shape, 1)
        except RuntimeError as error:
            message = (
                f"a scale of shape {tuple(scale.shape)} does not go with residuals of shape {(*shape, 'd_model')}."
            )
            raise ValueError(message) from error
        chosen.scale = scale.reshape(()) if scale.numel() == 1 else scale.expand(*shape, 1).reshape(-1)[row]
        return chosen

    def require_word(self, token: Any) -> None:
        """Raise unless a token id is in the vocabulary."""
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.d_vocab:
            raise ValueError(
                f"token id {token!r} is outside the vocabulary, whose ids run from 0 to {self.d_vocab - 1}."
            )

    def gradient(self, target: Target, residual: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        """Gradient of a target's measure with respect to the residual stream, the final norm's scale held at its own.

        log p(w): u_w − E_p u, led back through the norm; of several words, their mean column under the distribution.
        """
        with torch.inference_mode(False), torch.enable_grad():
            normed = self.normed(residual).clone().requires_grad_()
            log_probs = self.over_words([log_softmax(softmax.logits(normed)) for softmax in self.softmaxes])
            (gradient,) = torch.autograd.grad(target.value(log_probs), normed)
        return self.pulled_back(gradient, self.scale_at(self.cast(residual)))

    # What follows serves what is read at many places: the two halves of the readout, before and after the norm.

    def normed(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """N(x), bias included, in float32 or better."""
        x, norm = self.cast(residual), self._pieces.norm
        if norm is None:
            return x
        return norm(x) if self.scale is None else norm.affine(x, self.scale)

    def linear(
        self, vectors: Float[Tensor, "*rest d_model"], scale: Tensor | None = None
    ) -> Float[Tensor, "*rest d_model"]:
        """The linear part of N(v), at a given scale, the frozen scale, or else each vector's own."""
        v, norm = self.cast(vectors), self._pieces.norm
        return v if norm is None else norm.linear(v, self.scale_at(v) if scale is None else scale)

    def moved(
        self, residual: Float[Tensor, " d_model"], vectors: Float[Tensor, "n d_model"]
    ) -> Float[Tensor, "n d_model"]:
        """N(x + v) − N(x): the linear part of N(v) where the scale is frozen, else a difference taken in float64."""
        norm = self._pieces.norm
        if norm is None or self.scale is not None:
            return self.linear(vectors)
        x = self.cast(residual).double()
        return self.cast(norm(x + self.cast(vectors).double()) - norm(x))

    def pulled_back(self, covectors: Float[Tensor, "*rest d_model"], scale: Tensor) -> Float[Tensor, "*rest d_model"]:
        """The transpose of `linear` at a scale: <c, linear(v, scale)> = <pulled_back(c, scale), v>."""
        norm = self._pieces.norm
        return covectors if norm is None else norm.transposed(covectors, scale)

    @property
    def gain(self) -> Float[Tensor, " d_model"] | None:
        """The final norm's gain; None without one."""
        norm = self._pieces.norm
        return None if norm is None or norm.gain is None else self.cast(norm.gain)

    def centred(self, vectors: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """What the final norm takes the scale of: C(v)."""
        return vectors if self._pieces.norm is None else self._pieces.norm.centre(vectors)

    def scale_at(self, residual: Float[Tensor, "*rest d_model"]) -> Tensor:
        """The scale that a residual stream is read at: the frozen one, or its own; 1 without a final norm."""
        norm = self._pieces.norm
        if norm is None or self.scale is not None:
            return residual.new_ones(()) if self.scale is None else self.scale
        return norm.scale(residual)

    def _make_softmaxes(self) -> tuple[Softmax, ...]:
        pieces = self._pieces
        where: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        if not pieces.softmaxes:
            closed = ClosedSoftmax(
                pieces.unembed, pieces.d_vocab, factor=pieces.factor, soft_cap=pieces.soft_cap, **where
            )
            return (closed,)
        return tuple(Softmax(c, factor=pieces.factor, soft_cap=pieces.soft_cap, **where) for c in pieces.softmaxes)

    def over_words(self, values: list[Tensor]) -> Tensor:
        """Values of all words from those of all classes: a band's words get their own plus their band's in the head."""
        head, *bands = values
        if not bands:
            return head
        first = head.shape[-1] - len(bands)
        shares = head[..., first:].unbind(-1)
        rarer = [band + share.unsqueeze(-1) for band, share in zip(bands, shares, strict=True)]
        return torch.cat([head[..., :first], *rarer], -1)

    def cast(self, tensor: Tensor) -> Tensor:
        """A tensor where the readout is, in float32 or better, without gradients."""
        return tensor.detach().to(device=self._device, dtype=self._dtype)


@no_autocast_no_grad
def log_probs_together(
    readouts: Sequence[Readout], residuals: Sequence[Float[Tensor, " d_model"]]
) -> Float[Tensor, "run vocab"]:
    """`Readout.log_probs` of several runs of one model, each through its own readout, in one product."""
    normed = torch.stack([readout.normed(x) for readout, x in zip(readouts, residuals, strict=True)])
    first = readouts[0]
    return first.over_words([log_softmax(softmax.logits(normed)) for softmax in first.softmaxes])


def _is_positive(scale: Any) -> bool:
    try:
        numbers = torch.as_tensor(scale)
        return bool((torch.isfinite(numbers) & (numbers > 0)).all())
    except (TypeError, ValueError, RuntimeError):
        return False
