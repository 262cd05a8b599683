"""The residual stream in vocabulary space: final norm, unembedding, log-softmax (method of arXiv 2312.12141, section 3).

readout(x) = cap * tanh(factor * (N(x) W_U + b_U) / cap), with N the model's final norm, gain and bias included, and a soft
cap or a factor where the model has one. The scale of N is a choice: *frozen* at one run's final residual stream
(N is then affine, and so are the logits unless capped) or *recomputed* from each x (the logit lens).
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.model_view import ReadoutPieces, view_of

# Vectors and words read at a time: a block of bs-values is 8 MB, which stays near the processor.
VECTOR_BLOCK = 512
VOCAB_BLOCK = 4096
# exp() sums in float32 are trusted between these; outside, the sum is done again around its maximum.
_SAFE_SUM = (1e-30, 1e30)


class Readout:
    """Reads vectors of the residual stream in vocabulary space, under one choice of the final norm's scale.

    Args:
        model: a TransformerLens model.
        scale: "recomputed", or the frozen scale, a tensor that broadcasts to [*rest, 1] for residuals [*rest, d_model], such as
            `cache["ln_final.hook_scale"][:, -1]`; ignored by a model without a final norm.

    Raises:
        UnsupportedModelError: if something else than the final norm stands before the unembedding.
        ValueError: for any other `scale`.
    """

    def __init__(self, model: Any, *, scale: Tensor | float | str) -> None:
        if isinstance(scale, str) and scale != "recomputed":
            raise ValueError(f"scale is a tensor or 'recomputed', got {scale!r}.")
        view = view_of(model)
        self._pieces: ReadoutPieces = view.readout
        self._dtype = view.compute_dtype
        self._device = view.device
        self.scale: Tensor | None = (
            None if isinstance(scale, str) else torch.as_tensor(scale).detach().to(self._device, self._dtype)
        )

    @property
    def frozen(self) -> bool:
        """Whether the final norm's scale is frozen (or there is no final norm), which makes N affine."""
        return self.scale is not None or self._pieces.norm is None

    @property
    def affine(self) -> bool:
        """Whether logits are affine in the residual stream: scale frozen, no soft cap, a plain unembedding."""
        return self.frozen and self._pieces.soft_cap is None and self._pieces.W_U is not None

    @property
    def d_vocab(self) -> int:
        """Number of words."""
        return self._pieces.d_vocab

    def logits(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Logits as the model would compute them from this residual stream."""
        return self._logits(self.normed(residual))

    def log_probs(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Log-probabilities of all words, in nats."""
        return self.logits(residual).log_softmax(-1)

    def log_prob(self, residual: Float[Tensor, "*rest d_model"], token: int) -> Float[Tensor, "*rest"]:
        """Log-probability of one word, in nats; the vocabulary is read in blocks."""
        normed = self.normed(residual)
        flat = normed.reshape(-1, normed.shape[-1])
        return self.normed_log_prob(flat, token).reshape(normed.shape[:-1])

    def bs_values(self, vectors: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Before-softmax values of vectors: the linear part of N(v) W_U, biases left out (section 3 of the paper).

        With the scale recomputed, each vector's own scale is used.
        """
        return self._project(self.linear(vectors)) * self._pieces.factor

    def at(self, row: int, shape: torch.Size) -> "Readout":
        """The readout of one row of residuals [*shape, d_model], rows counted as if `shape` were flattened."""
        if self.scale is None:
            return self
        chosen = copy.copy(self)
        scale = self.scale
        chosen.scale = scale.reshape(()) if scale.numel() == 1 else scale.expand(*shape, 1).reshape(-1)[row]
        return chosen

    # What follows serves the importance scores: the two halves of the readout, before and after the norm.

    def normed(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """N(x), bias included, in float32 or better."""
        x, norm = self._cast(residual), self._pieces.norm
        if norm is None:
            return x
        return norm(x) if self.scale is None else norm.affine(x, self.scale)

    def linear(self, vectors: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """The linear part of N(v)."""
        v, norm = self._cast(vectors), self._pieces.norm
        if norm is None:
            return v
        return norm.linear(v, norm.scale(v) if self.scale is None else self.scale)

    def bs_value(self, lin: Float[Tensor, "n d_model"], token: int) -> Float[Tensor, " n"]:
        """Before-softmax value of one word for vectors already through `linear`."""
        if self._pieces.W_U is None:
            return self._project(lin)[:, token] * self._pieces.factor
        return lin @ self._cast(self._pieces.W_U[:, token]) * self._pieces.factor

    def log_mean_exp(self, lin: Float[Tensor, "n d_model"], log_p: Float[Tensor, " vocab"]) -> Float[Tensor, " n"]:
        """Log Σ_t p_t exp(bs_t) for vectors already through `linear`, with p a distribution over the words.

        Never holds vectors × vocabulary: blocks of `VOCAB_BLOCK` words. Affine readouts only.
        """
        total = torch.zeros(len(lin), dtype=torch.float64, device=lin.device)
        lin = lin * self._pieces.factor
        for words, W in self._blocks():
            for rows, sums in zip(lin.split(VECTOR_BLOCK), total.split(VECTOR_BLOCK), strict=True):
                sums += torch.addmm(log_p[words], rows, W).exp_().sum(-1)
        return self._finish(total, lin, log_p)

    def normed_log_prob(self, normed: Float[Tensor, "n d_model"], token: int) -> Float[Tensor, " n"]:
        """Log-probability of one word for residuals already through `normed`, the vocabulary read in blocks."""
        if self._pieces.W_U is None:
            return self._logits(normed).log_softmax(-1)[:, token]
        target = self._capped(normed @ self._cast(self._pieces.W_U[:, token]) + self._bias(slice(token, token + 1)))
        highest, total = torch.full_like(target, -torch.inf), torch.zeros_like(target)
        for words, W in self._blocks():
            logits = self._capped(torch.addmm(self._bias(words), normed, W))
            new = torch.maximum(highest, logits.amax(-1))
            total = total * (highest - new).exp() + logits.sub_(new[:, None]).exp_().sum(-1)
            highest = new
        return target - highest - total.log()

    def _finish(self, total: Tensor, scaled: Tensor, log_p: Tensor) -> Tensor:
        """The logarithm of sums of exp, done again around their maximum where the plain sum over- or underflowed."""
        result = total.log().to(scaled.dtype)
        unsafe = ~((total > _SAFE_SUM[0]) & (total < _SAFE_SUM[1]))
        if unsafe.any():
            rows = scaled[unsafe]
            running = torch.full((len(rows),), -torch.inf, dtype=scaled.dtype, device=scaled.device)
            for words, W in self._blocks():
                running = torch.logaddexp(running, torch.addmm(log_p[words], rows, W).logsumexp(-1))
            result[unsafe] = running
        return result

    def _blocks(self) -> Iterator[tuple[slice, Float[Tensor, "d_model words"]]]:
        W_U = self._pieces.W_U
        assert W_U is not None
        for start in range(0, self.d_vocab, VOCAB_BLOCK):
            words = slice(start, min(start + VOCAB_BLOCK, self.d_vocab))
            yield words, self._cast(W_U[:, words])

    def _logits(self, normed: Tensor) -> Tensor:
        if self._pieces.W_U is None:
            return self._capped(self._pieces.unembed(normed))
        return self._capped(self._project(normed) + self._bias(slice(None)))

    def _project(self, lin: Tensor) -> Tensor:
        """Lin @ W_U, whole vocabulary; by the model's own unembedding where its matrix cannot be read."""
        if self._pieces.W_U is None:
            return self._pieces.unembed(lin) - self._pieces.unembed(torch.zeros_like(lin))
        return torch.cat([lin @ W for _, W in self._blocks()], -1)

    def _capped(self, logits: Tensor) -> Tensor:
        factor, cap = self._pieces.factor, self._pieces.soft_cap
        logits = logits if factor == 1.0 else logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _bias(self, words: slice) -> Tensor:
        b_U = self._pieces.b_U
        return self._cast(b_U[words]) if b_U is not None else torch.zeros(1, dtype=self._dtype, device=self._device)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=self._device, dtype=self._dtype)
