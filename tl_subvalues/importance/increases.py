"""How much a subvalue raises the target's log-probability (importance scores of arXiv 2312.12141, section 3).

    log-probability increase   Δ(v) = log p(w | x + v) − log p(w | x)
    probability increase       p(w | x + v) − p(w | x)

Where logits are affine in the residual stream (scale frozen, no soft cap), with p the distribution at x,

    Δ(v) = bs(v)_w − log Σ_t p_t exp(bs(v)_t)    (summed over the word's softmaxes, where it has two)

which needs no subtraction of two large log-sum-exps. Else both readouts are made and subtracted. Never
log(softmax), and never subvalues × vocabulary: vectors and words come in blocks.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.reading import read
from tl_subvalues.readout.readout import Readout
from tl_subvalues.readout.targets import Target, prob_increase_of


@no_autocast_no_grad
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
    rows, d_model = residual.shape[:-1], residual.shape[-1]
    flat = residual.reshape(-1, d_model)
    parts = subvalues.reshape(len(subvalues), len(flat), d_model)
    columns = []
    for row in range(len(flat)):
        here, x, vectors = readout.at(row, rows), readout.cast(flat[row])[None], readout.cast(parts[:, row])
        site = torch.zeros(len(parts), dtype=torch.long, device=x.device)
        columns.append(read(here, Target((token,)), x).increases(site, vectors))
    return torch.stack(columns, 1).reshape(subvalues.shape[:-1])


@no_autocast_no_grad
def prob_increase(
    readout: Readout,
    residual: Float[Tensor, "*rest d_model"],
    subvalues: Float[Tensor, "component *rest d_model"],
    token: int,
) -> Float[Tensor, "component *rest"]:
    """Probability increase of each subvalue; arguments and errors as `log_prob_increase`."""
    return prob_increase_of(log_prob_increase(readout, residual, subvalues, token), readout.log_prob(residual, token))


def _require_fitting(readout: Readout, residual: Tensor, subvalues: Tensor, token: int) -> None:
    readout.require_word(token)
    if subvalues.shape[1:] != residual.shape:
        raise ValueError(
            f"subvalues of shape {tuple(subvalues.shape)} do not go with a residual stream of shape "
            f"{tuple(residual.shape)}: they have its shape behind the component axis."
        )
