"""The residual stream in vocabulary space: final norm, unembedding, log-softmax (arXiv 2312.12141, section 3).

readout(x) = cap * tanh(factor * (N(x) W_U + b_U) / cap), with N the model's final norm, gain and bias included, and a
soft cap or a factor where the model has one. The scale of N is a choice: *frozen* at one run's final residual stream
(N is then affine, and so are the logits unless capped) or *recomputed* from each x (the logit lens).
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.blocks import in_full_precision, padded
from tl_subvalues.model_view import ReadoutPieces, view_of

# Vectors and words read at a time, on a CPU: a block of logits is 1 MB and stays in a core's own cache. Blocks always
# have VECTOR_BLOCK rows (padded with zeros), so that a vector gives the same bits whatever stands beside it: ties stay
# ties, and a search gives what a sweep gives. Of 160 rows, because two such blocks certify the default top 300 (304
# evaluations were needed on SmolLM2-135M); blocks of 128 took 1.14 times as long, blocks of 320 rows 0.94 times.
VECTOR_BLOCK = 160
VOCAB_BLOCK = 2048
# An accelerator wants more at a time: a block of 128 MB.
ACCELERATOR_BLOCKS = (2048, 16384)
# Below, exp() of a log-prob is 0 or loses digits in float32, and a large bs-value could still make the word count.
_SMALLEST_LOG_P = -85.0
# Sums of exp() in float32 are trusted between these; outside, the sum is done again around its maximum.
_SAFE_SUM = (1e-30, 1e30)


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
    def bounded(self) -> bool:
        """Whether Jensen's bound on increases holds: logits affine in N(x), whatever is done with the scale."""
        return self._pieces.soft_cap is None and self._pieces.W_U is not None

    @property
    def d_vocab(self) -> int:
        """Number of words."""
        return self._pieces.d_vocab

    @in_full_precision
    def logits(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Logits as the model would compute them from this residual stream."""
        return self._logits(self.normed(residual))

    @in_full_precision
    def log_probs(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest vocab"]:
        """Log-probabilities of all words, in nats."""
        return self.logits(residual).log_softmax(-1)

    @in_full_precision
    def log_prob(self, residual: Float[Tensor, "*rest d_model"], token: int) -> Float[Tensor, "*rest"]:
        """Log-probability of one word, in nats; the vocabulary is read in blocks.

        Raises:
            ValueError: if the word is outside the vocabulary.
        """
        self.require_word(token)
        normed = self.normed(residual)
        flat = normed.reshape(-1, normed.shape[-1])
        return self.normed_log_prob(flat, token).reshape(normed.shape[:-1])

    @in_full_precision
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

    # What follows serves the importance scores: the two halves of the readout, before and after the norm.

    def normed(self, residual: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """N(x), bias included, in float32 or better."""
        x, norm = self._cast(residual), self._pieces.norm
        if norm is None:
            return x
        return norm(x) if self.scale is None else norm.affine(x, self.scale)

    def linear(
        self, vectors: Float[Tensor, "*rest d_model"], scale: Tensor | None = None
    ) -> Float[Tensor, "*rest d_model"]:
        """The linear part of N(v), at a given scale, the frozen scale, or else each vector's own."""
        v, norm = self._cast(vectors), self._pieces.norm
        return v if norm is None else norm.linear(v, self.scale_at(v) if scale is None else scale)

    def pulled_back(self, covectors: Float[Tensor, "*rest d_model"], scale: Tensor) -> Float[Tensor, "*rest d_model"]:
        """The transpose of `linear` at a scale: <c, linear(v, scale)> = <pulled_back(c, scale), v>."""
        norm = self._pieces.norm
        return covectors if norm is None else norm.transposed(covectors, scale)

    def centred(self, vectors: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """What the final norm takes the scale of: C(v)."""
        return vectors if self._pieces.norm is None else self._pieces.norm.centre(vectors)

    def scale_at(self, residual: Float[Tensor, "*rest d_model"]) -> Tensor:
        """The scale that a residual stream is read at: the frozen one, or its own; 1 without a final norm."""
        norm = self._pieces.norm
        if norm is None or self.scale is not None:
            return residual.new_ones(()) if self.scale is None else self.scale
        return norm.scale(residual)

    def bs_value(self, lin: Float[Tensor, "n d_model"], token: int) -> Float[Tensor, " n"]:
        """Before-softmax value of one word for vectors already through `linear`."""
        if self._pieces.W_U is None:
            return self._project(lin)[:, token] * self._pieces.factor
        return _dot(lin, self.column(token))

    def log_mean_exp(
        self, lin: Float[Tensor, "n d_model"], log_p: Float[Tensor, "site vocab"], site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Log Σ_t p_t exp(bs_t) for vectors already through `linear`; vector i under the distribution log_p[site[i]].

        Never holds vectors × vocabulary. Affine readouts only.
        """

        def block(rows: Tensor, W: Tensor, words: slice, at: slice) -> Tensor:
            return (rows @ W).add_(log_p[:, words][site[at]])

        n, size = len(lin), self.block_sizes[0]
        lin, site = padded(lin * self._pieces.factor, size), padded(site, size)
        if log_p.min() < _SMALLEST_LOG_P:
            return self._log_sum_exp(lin, block)[:n]
        # log1p Σ p (e^bs − 1): small increases keep their digits, which log Σ e^(log p + bs) loses to rounding.
        # The sum over words is a product with all sites' distributions at once, of which each row takes its own.
        p, total = log_p.exp(), torch.zeros(len(lin), dtype=torch.float64, device=lin.device)
        for words, W in self._blocks():
            p_words = p[:, words].T.contiguous()
            for start in range(0, len(lin), size):
                at = slice(start, start + size)
                total[at] += ((lin[at] @ W).expm1_() @ p_words).gather(1, site[at, None])[:, 0]
        result, unsafe = total.log1p().to(lin.dtype), ~((total > -0.5) & (total < _SAFE_SUM[1]))
        return torch.where(unsafe, self._log_sum_exp(lin, block), result)[:n] if unsafe.any() else result[:n]

    def log_mean_exp_of_multiples(
        self,
        lin: Float[Tensor, "n d_model"],
        multiples: Float[Tensor, "j n"],
        log_p: Float[Tensor, "site vocab"],
        site: Int[Tensor, " j"],
    ) -> Float[Tensor, "j n"]:
        """`log_mean_exp` of multiples[j, i] * lin[i] under log_p[site[j]]: one product with the vocabulary for all j.

        NaN where the sum is not to be trusted (see `log_mean_exp`). Affine readouts only.
        """
        size, n = self.block_sizes[0], len(lin)
        lin, multiples = padded(lin * self._pieces.factor, size), padded(multiples.T.contiguous(), size).T
        p, total = log_p.exp(), torch.zeros(multiples.shape, dtype=torch.float64, device=lin.device)
        for words, W in self._blocks():
            for start in range(0, len(lin), size):
                at = slice(start, start + size)
                bs = lin[at] @ W
                for j, row in enumerate(site.tolist()):
                    total[j, at] += (bs * multiples[j, at, None]).expm1_() @ p[row, words]
        trusted = (total > -0.5) & (total < _SAFE_SUM[1]) & (log_p.amin(-1)[site, None] >= _SMALLEST_LOG_P)
        return total.log1p().masked_fill(~trusted, torch.nan).to(lin.dtype)[:, :n]

    def normed_log_prob(self, normed: Float[Tensor, "n d_model"], token: int) -> Float[Tensor, " n"]:
        """Log-probability of one word for residuals already through `normed`, the vocabulary read in blocks."""
        if self._pieces.W_U is None:
            return torch.cat([self._logits(rows).log_softmax(-1)[:, token] for rows in normed.split(VECTOR_BLOCK)])
        W_U = self._pieces.W_U
        target = self._capped(_dot(normed, self._cast(W_U[:, token])) + self._bias(slice(token, token + 1)))
        rows, shift = padded(normed, self.block_sizes[0]), padded(target, self.block_sizes[0])

        def block(rows: Tensor, W: Tensor, words: slice, at: slice) -> Tensor:
            return self._capped((rows @ W).add_(self._bias(words))).sub_(shift[at, None])

        return -self._log_sum_exp(rows, block)[: len(target)]

    def column(self, token: int) -> Float[Tensor, " d_model"]:
        """One word's readout column: bs_value(lin, token) = <lin, column>. Affine readouts only."""
        assert self._pieces.W_U is not None
        return self._cast(self._pieces.W_U[:, token]) * self._pieces.factor

    def mean_columns(self, log_p: Float[Tensor, "site vocab"]) -> Float[Tensor, "site d_model"]:
        """Σ_t p_t u_t, the expected readout column under each distribution. Affine readouts only."""
        assert self._pieces.W_U is not None
        total = torch.zeros(len(log_p), self._pieces.W_U.shape[0], dtype=self._dtype, device=self._device)
        for words, W in self._blocks():
            total += log_p[:, words].exp() @ W.T
        return total * self._pieces.factor

    def column_spread(
        self, log_p: Float[Tensor, "site vocab"], mean: Float[Tensor, "site d_model"]
    ) -> tuple[Float[Tensor, " site"], Float[Tensor, " site"]]:
        """How far readout columns lie from their mean under each distribution: max_t ‖u_t − ū‖, and E_p ‖u_t − ū‖²."""
        widest = torch.zeros(len(mean), dtype=self._dtype, device=self._device)
        variance = torch.zeros_like(widest)
        for words, W in self._blocks():
            columns = W * self._pieces.factor
            squared = columns.pow(2).sum(0) - 2 * mean @ columns + mean.pow(2).sum(-1, keepdim=True)
            widest = torch.maximum(widest, squared.amax(-1))
            variance += (log_p[:, words].exp() * squared.clamp(min=0)).sum(-1)
        return widest.clamp(min=0).sqrt(), variance

    def _log_sum_exp(
        self, rows: Float[Tensor, "n d_model"], block: Callable[[Tensor, Tensor, slice, slice], Tensor]
    ) -> Float[Tensor, " n"]:
        """Log Σ_t exp(z_t) with z = block(rows, W, words, at), made and consumed block by block.

        The plain sum where it neither over- nor underflows (log-probs plus bs-values seldom do), else around its
        maximum.
        """
        size = self.block_sizes[0]
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for words, W in self._blocks():
            for start in range(0, len(rows), size):
                at = slice(start, start + size)
                total[at] += block(rows[at], W, words, at).exp_().sum(-1)
        result = total.log().to(rows.dtype)
        unsafe = ~((total > _SAFE_SUM[0]) & (total < _SAFE_SUM[1]))
        for start in range(0, len(rows), size):
            at = slice(start, start + size)
            if unsafe[at].any():
                running = torch.full_like(result[at], -torch.inf)
                for words, W in self._blocks():
                    running = torch.logaddexp(running, block(rows[at], W, words, at).logsumexp(-1))
                result[at] = torch.where(unsafe[at], running, result[at])
        return result

    def _blocks(self) -> Iterator[tuple[slice, Float[Tensor, "d_model words"]]]:
        W_U, step = self._pieces.W_U, self.block_sizes[1]
        assert W_U is not None
        for start in range(0, self.d_vocab, step):
            words = slice(start, min(start + step, self.d_vocab))
            yield words, self._cast(W_U[:, words])

    @property
    def block_sizes(self) -> tuple[int, int]:
        """Vectors and words that are read at a time on this device."""
        return (VECTOR_BLOCK, VOCAB_BLOCK) if self._device.type == "cpu" else ACCELERATOR_BLOCKS

    def _logits(self, normed: Tensor) -> Tensor:
        if self._pieces.W_U is None:
            return self._capped(self._pieces.unembed(normed))
        return self._capped(self._project(normed) + self._bias(slice(None)))

    def _project(self, lin: Tensor) -> Tensor:
        """Lin @ W_U, whole vocabulary; by the model's own unembedding where its matrix cannot be read."""
        if self._pieces.W_U is None:
            return self._pieces.unembed(lin) - self._pieces.unembed(torch.zeros_like(lin))
        if self._pieces.W_U.dtype == self._dtype:
            return lin @ self._pieces.W_U
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


def _dot(rows: Float[Tensor, "n d_model"], column: Float[Tensor, " d_model"]) -> Float[Tensor, " n"]:
    """Rows @ column, each row summed alone, so that its bits do not depend on how many there are."""
    return (rows * column).sum(-1)


def _is_positive(scale: Any) -> bool:
    try:
        numbers = torch.as_tensor(scale)
        return bool((torch.isfinite(numbers) & (numbers > 0)).all())
    except (TypeError, ValueError, RuntimeError):
        return False
