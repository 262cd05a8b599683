"""What switched a neuron on: scores of every earlier component of the residual stream (arXiv 2312.12141, section 3).

With the norm before the sublayer frozen at this run's scale, the scores of all earlier components and the bias terms
add up to the neuron's pre-activation, value, or (gated FFN, with its gate held) coefficient.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.components import component_of
from tl_subvalues.decomposition.run import Run
from tl_subvalues.upstream.scores import check_sum, scores
from tl_subvalues.upstream.sources import sources
from tl_subvalues.upstream.subkeys import readers_of

# The units that earlier components can be told apart by.
By = Literal["sublayer", "head", "head_position", "ffn_neuron"]
BIAS = "bias"


@dataclass(frozen=True)
class ActivationScores:
    """One neuron's scores, component by component, the bias terms last.

    `columns["score"]` adds up to the run's pre-activation, value or coefficient (`sums_to`); of a gated FFN neuron
    there are also `gate` and `up`, which add up to the two projections.
    """

    labels: list[str]
    columns: dict[str, Float[Tensor, " row"]]
    sums_to: str
    position: int


def activation_scores(run: Run, label: str, by: By) -> ActivationScores:
    """What every component that a neuron reads adds to it.

    Raises:
        ValueError: if the label names no neuron of this run, or `by` no unit to tell components apart by.
        UnsupportedModelError: if the scores would not add up, or the subkeys cannot be read.
    """
    if by not in get_args(By):
        raise ValueError(f"by is 'sublayer', 'head', 'head_position' or 'ffn_neuron', got {by!r}.")
    component = component_of(run, label)
    readers = readers_of(run if component.at is None else run.at(component.at), [component])
    read = {"gate": readers.gate, "up": readers.up, "score": readers.keys}
    keys = {name: subkeys for name, subkeys in read.items() if subkeys is not None}
    covectors = torch.cat([subkeys.covectors for subkeys in keys.values()])
    there = run.at(readers.position)
    labels: list[str] = []
    found = []
    for source, values in scores(
        sources(there, by, there.read_by(readers.layer, readers.sublayer)), lambda site: covectors
    ):
        labels += source.labels()
        found.append(values)
    table = torch.cat(found, 1)
    for name, covector, row in zip(keys, covectors, table, strict=True):
        what = readers.sums_to if name == "score" else name
        check_sum(there, readers, what, covector[None], row.sum()[None], row.abs().sum()[None])
    columns = {name: torch.cat([row, keys[name].biases]).cpu() for name, row in zip(keys, table, strict=True)}
    return ActivationScores([*labels, BIAS], columns, readers.sums_to, readers.position)
