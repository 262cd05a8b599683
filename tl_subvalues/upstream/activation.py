"""What switched a neuron on: scores of every earlier component of the residual stream (arXiv 2312.12141, section 3).

    score(c -> neuron) = <c, covector of the neuron's subkey>

with the norm before the sublayer frozen at this run's scale, so that the scores of all earlier components and the bias
terms add up to the neuron's pre-activation, value, or (gated FFN, with its gate held) coefficient. The subkey comes
first: no tensor of neurons × components × d_model is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.sites import Parts, Run, Site
from tl_subvalues.decomposition.subvalues import WholeSubvalues
from tl_subvalues.labels import PART_OF, Unit, bias_label, labels_of, parse_label
from tl_subvalues.upstream.subkeys import Subkeys, check_sum, readers_of

By = Literal["sublayer", "head", "head_position", "ffn_neuron"]
BIAS = "bias"


@dataclass(frozen=True)
class Source:
    """Earlier components that were added at one place: a sublayer's parts, a constant, or an embedding."""

    unit: Unit
    parts: Parts
    site: Site | None = None
    name: str | None = None  # of what has no parts: `embed`, `3_attn_bias`

    def labels(self) -> list[str]:
        """A label for each."""
        if self.name is not None:
            return [self.name]
        assert self.site is not None
        index = torch.arange(len(self.parts.subvalues))
        columns: dict[str, list[Any]] = {name: values.tolist() for name, values in self.parts.fields(index).items()}
        columns["layer"] = [self.site.layer] * len(index)
        columns["sublayer"] = [self.site.sublayer] * len(index)
        return labels_of(self.unit, columns)


def sources(run: Run, by: Unit, sites: list[Site]) -> Iterator[Source]:
    """All that was added to the residual stream by the given sites and before them, at the run's position.

    The sites that `by` takes apart come in parts and their bias, the others whole.
    """
    for label, vector in run.embeddings().items():
        yield Source("sublayer", Parts(WholeSubvalues(vector[None]), {}), name=label)
    for site in sites:
        unit: Unit = by if PART_OF[by] == site.sublayer else "sublayer"
        yield Source(unit, run.parts(site, unit), site)
        if unit != "sublayer" and (bias := run.bias(site)).any():
            name = bias_label(site.layer, site.sublayer)
            yield Source("sublayer", Parts(WholeSubvalues(bias[None]), {}), site, name)


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


def activation_scores(run: Run, label: str, by: str) -> ActivationScores:
    """What every component that a neuron reads adds to it.

    Raises:
        ValueError: if the label names no neuron of this run, or `by` no kind of component.
        UnsupportedModelError: if the scores would not add up, or the subkeys cannot be read.
    """
    if by not in get_args(By):
        raise ValueError(f"by is 'sublayer', 'head', 'head_position' or 'ffn_neuron', got {by!r}.")
    unit: Unit = next(known for known in get_args(By) if known == by)
    component = parse_label(label)
    readers = readers_of(run, [component])
    there = run.at(readers.position)
    read: dict[str, Subkeys] = {"score": readers.keys}
    if readers.gate is not None and readers.up is not None:
        read = {"gate": readers.gate, "up": readers.up, **read}
    names: list[str] = []
    found: dict[str, list[Tensor]] = {name: [] for name in read}
    for source in sources(there, unit, there.read_by(component.layer, component.sublayer)):
        names += source.labels()
        for name, keys in read.items():
            found[name].append(source.parts.subvalues.inner_products(keys.covectors[0]).cpu())
    columns: dict[str, Tensor] = {}
    for name, keys in read.items():
        scores = torch.cat(found[name])
        what = readers.sums_to if name == "score" else name
        check_sum(
            there,
            component.layer,
            component.sublayer,
            what,
            keys.covectors,
            scores.sum()[None].to(keys.covectors),
            scores.abs().sum()[None].to(keys.covectors),
        )
        columns[name] = torch.cat([scores, keys.biases.cpu()])
    return ActivationScores([*names, BIAS], columns, readers.sums_to, readers.position)
