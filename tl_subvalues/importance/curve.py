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
from tl_subvalues.labels import parse_label
from tl_subvalues.readout.reading import Reading

# Subvalues held at a time: 1,280 vectors of 4,096 numbers are 20 MB.
_BLOCK = 1280


@dataclass(frozen=True)
class Curve:
    """The target's measure in nats; entry 0 before anything is added, entry i after the i-th component."""

    labels: list[str]
    measured: Float[Tensor, " step"]


def curve_of(run: Run, reading: Reading, labels: Sequence[str]) -> Curve:
    """Add components in the order given to the residual stream that the earliest sublayer among them reads.

    The first label is that residual stream's, as TransformerLens has it: `24_pre` or `24_mid`.

    Raises:
        ValueError: if there are no labels, or no such component.
    """
    if not labels:
        raise ValueError("nothing to add: pass a table with at least one row.")
    named = {(c.layer, c.sublayer) for label in labels for c in [component_of(run, label)]}
    start = next(site for site in run.sites if (site.layer, site.sublayer) in named)
    for layer, sublayer, unit in {(c.layer, c.sublayer, c.unit) for label in labels for c in [parse_label(label)]}:
        run.check_sum(layer, sublayer, unit)
    stage = "mid" if run.view.layer(start.layer).reads_mid(start.sublayer) else "pre"
    reached = start.residual.double()
    measured = [reading.at(start.residual[None])]
    for first in range(0, len(labels), _BLOCK):
        added = subvalues_of(run, labels[first : first + _BLOCK]).double().cumsum(0) + reached
        measured.append(reading.at(added.to(start.residual)))
        reached = added[-1]
    return Curve([f"{start.layer}_{stage}", *labels], torch.cat(measured))
