"""How much a subvalue raises the target's log-probability (arXiv 2312.12141, section 3, equations of the importance score).

    log-probability increase   Δ(v) = log p(w | x + v) − log p(w | x)
    probability increase       p(w | x + v) − p(w | x)

Where logits are affine in the residual stream (scale frozen, no soft cap), with p the distribution at x,

    Δ(v) = bs(v)_w − log Σ_t p_t exp(bs(v)_t)

which needs no subtraction of two large log-sum-exps. Else both readouts are made and subtracted. Never
log(softmax), and never subvalues × vocabulary: vectors and words come in blocks.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.readout import Readout


def log_prob_increase(
    readout: Readout,
    residual: Float[Tensor, "*rest d_model"],
    subvalues: Float[Tensor, "component *rest d_model"],
    token: int,
) -> Float[Tensor, "component *rest"]:
    """Log-probability increase of each subvalue, in nats.

    Args:
        readout: how the residual stream is read.
        residual: x, the residual stream that the sublayer reads.
        subvalues: v, what is added to it, component axis first.
        token: the target's id.

    Raises:
        ValueError: if the token is outside the vocabulary, or the shapes do not go together.
    """
    _require_fitting(readout, residual, subvalues, token)
    if residual.ndim == 1:
        return increases(readout.at(0, torch.Size()), residual, subvalues, token)
    flat, parts = residual.flatten(0, -2), subvalues.flatten(1, -2)
    columns = [
        increases(readout.at(row, residual.shape[:-1]), flat[row], parts[:, row], token) for row in range(len(flat))
    ]
    return torch.stack(columns, 1).reshape(subvalues.shape[:-1])


def prob_increase(
    readout: Readout,
    residual: Float[Tensor, "*rest d_model"],
    subvalues: Float[Tensor, "component *rest d_model"],
    token: int,
) -> Float[Tensor, "component *rest"]:
    """Probability increase of each subvalue; arguments and errors as `log_prob_increase`."""
    return as_prob_increase(log_prob_increase(readout, residual, subvalues, token), readout.log_prob(residual, token))


def as_prob_increase(increase: Float[Tensor, "*rest"], base: Float[Tensor, "*#rest"]) -> Float[Tensor, "*rest"]:
    """Probability increase from a log-probability increase and the log-probability that it starts from."""
    return base.exp() * torch.expm1(increase)


def increases(
    readout: Readout,
    residual: Float[Tensor, " d_model"],
    vectors: Float[Tensor, "n d_model"],
    token: int,
    log_p: Float[Tensor, " vocab"] | None = None,
) -> Float[Tensor, " n"]:
    """Log-probability increase of vectors added to one residual stream. `log_p`: the log-probs there, where known."""
    if log_p is None:
        log_p = readout.log_probs(residual)
    if readout.affine:
        lin = readout.linear(vectors)
        return readout.bs_value(lin, token) - readout.log_mean_exp(lin, log_p)
    normed = readout.normed(residual.to(vectors) + vectors)
    return readout.normed_log_prob(normed, token) - log_p[token]


def _require_fitting(readout: Readout, residual: Tensor, subvalues: Tensor, token: int) -> None:
    if not 0 <= token < readout.d_vocab:
        raise ValueError(f"token id {token} is outside the vocabulary, which runs from 0 to {readout.d_vocab - 1}.")
    if subvalues.shape[1:] != residual.shape:
        raise ValueError(
            f"subvalues of shape {tuple(subvalues.shape)} do not go with a residual stream of shape "
            f"{tuple(residual.shape)}: they have its shape behind the component axis."
        )
