"""Log-probability as subvalues are added one at a time (arXiv 2312.12141, section 3).

Softmax turns added before-softmax values into products: log p grows about linearly as subvalues are added, while p
stays flat and then jumps. This is the paper's argument for scoring by log-probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.components import component_of, subvalues_of
from tl_subvalues.decomposition.run import Run
from tl_subvalues.readout.readout import Readout

# Subvalues held at a time: 1,280 vectors of 4,096 numbers are 20 MB.
_BLOCK = 1280


@dataclass(frozen=True)
class Curve:
    """Log-probabilities of the target; entry 0 before anything is added, entry i after the i-th component."""

    labels: list[str]
    log_probs: Float[Tensor, " step"]


def curve_of(run: Run, readout: Readout, token: int, labels: Sequence[str]) -> Curve:
    """Add components in the order given to the residual stream that the earliest sublayer among them reads.

    The first label is that residual stream's, as TransformerLens has it: `24_pre` or `24_mid`.

    Raises:
        ValueError: if there are no labels, or no such component.
    """
    if not labels:
        raise ValueError("nothing to add: pass a table with at least one row.")
    named = {(c.layer, c.sublayer) for label in labels for c in [component_of(run, label)]}
    start = next(site for site in run.sites if (site.layer, site.sublayer) in named)
    stage = "mid" if run.view.layer(start.layer).reads_mid(start.sublayer) else "pre"
    reached = start.residual.double()
    log_probs = [readout.log_prob(start.residual[None], token)]
    for first in range(0, len(labels), _BLOCK):
        added = subvalues_of(run, labels[first : first + _BLOCK]).double().cumsum(0) + reached
        log_probs.append(readout.log_prob(added.to(start.residual), token))
        reached = added[-1]
    return Curve([f"{start.layer}_{stage}", *labels], torch.cat(log_probs))
