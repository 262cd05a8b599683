"""Query neurons: which earlier components switch a set of value neurons on (arXiv 2312.12141, section 3).

    query(c) = Σ_j Δ_j · score(c -> j) / Σ_c' score(c' -> j)

over value neurons j with log-probability increases Δ_j, the sum in the denominator running over everything in the
residual stream that j reads. Scores are linear in the neurons' subkeys, so all neurons that read after a component
count through one covector, and a component costs one inner product however many neurons there are.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.components import component_of
from tl_subvalues.decomposition.run import Run, Site
from tl_subvalues.labels import PART_OF, Unit
from tl_subvalues.upstream.scores import check_sum, scores
from tl_subvalues.upstream.sources import Source, sources
from tl_subvalues.upstream.subkeys import readers_of

# A denominator below this share of what its terms amount to is rounding, not a number to divide by; in half precision,
# below an eighth of what one addition may round away. Top value neurons of SmolLM2 had at least 0.03.
VANISHING = 1e-5


@dataclass(frozen=True)
class QueryScores:
    """Query scores of components, and the value neurons that were left out for a vanishing denominator."""

    labels: list[str]
    scores: Float[Tensor, " row"]
    left_out: list[str]


@dataclass(frozen=True)
class _Demand:
    """What the value neurons of one sublayer at one position ask for together: Σ_j Δ_j / denominator_j · covector_j."""

    layer: int
    sublayer: str
    position: int
    covector: Float[Tensor, " d_model"]


def query_scores(run: Run, labels: Sequence[str], increases: Sequence[float], unit: Unit) -> QueryScores:
    """Scores of all components of one unit; of sublayers, the embeddings among them.

    Args:
        run: where the value neurons were found.
        labels: the value neurons, FFN and attention neurons.
        increases: their log-probability increases, in nats.
        unit: "sublayer", "head", "head_position" or "ffn_neuron".

    Raises:
        ValueError: if a label names no neuron of this run.
        UnsupportedModelError: if subkeys cannot be read.
    """
    demands, left_out = _demands(run, labels, increases)
    total: dict[str, float] = {}
    for position in sorted({demand.position for demand in demands}):
        there = run.at(position)
        sites = [site for site in there.sites if PART_OF[unit] in (None, site.sublayer)]
        wanted = (source for source in sources(there, unit, sites) if _counts(source, unit))
        asked = _Asked(there, [demand for demand in demands if demand.position == position])
        for source, (row,) in scores(wanted, asked):
            for label, score in zip(source.labels(), row.tolist(), strict=True):
                total[label] = total.get(label, 0.0) + score
    return QueryScores(list(total), torch.tensor(list(total.values()), dtype=torch.float64), left_out)


def _counts(source: Source, unit: Unit) -> bool:
    """Whether a source's components are of the unit asked for: embeddings count among sublayers, constants nowhere."""
    return source.unit == unit and (unit == "sublayer" or source.site is not None)


class _Asked:
    """What all demands at one position together ask of what was added at a site: the sum of their covectors."""

    def __init__(self, run: Run, demands: Sequence[_Demand]) -> None:
        self._dtype = run.view.compute_dtype
        self._demands = [(demand.covector, _sites_read(run, demand)) for demand in demands]

    def __call__(self, site: Site | None) -> Float[Tensor, "1 d_model"] | None:
        asking = [covector for covector, sites in self._demands if site is None or (site.layer, site.sublayer) in sites]
        return torch.stack(asking).sum(0)[None].to(self._dtype) if asking else None


def _sites_read(run: Run, demand: _Demand) -> set[tuple[int, str]]:
    return {(site.layer, site.sublayer) for site in run.read_by(demand.layer, demand.sublayer)}


def _demands(run: Run, labels: Sequence[str], increases: Sequence[float]) -> tuple[list[_Demand], list[str]]:
    """Value neurons gathered by sublayer and position, those with a vanishing denominator set aside."""
    groups: dict[tuple[int, str, int | None, int | None], list[int]] = defaultdict(list)
    components = [component_of(run, label) for label in labels]
    for number, component in enumerate(components):
        groups[component.layer, component.unit, component.position, component.expert].append(number)
    demands, left_out = [], []
    for numbers in groups.values():
        readers = readers_of(run, [components[number] for number in numbers])
        there = run.at(readers.position)
        covectors = readers.keys.covectors.double()
        read = there.read_by(readers.layer, readers.sublayer)
        parts = [*there.embeddings().values(), *(site.output for site in read)]
        terms = torch.stack(parts).double() @ covectors.T
        sizes = terms.abs().sum(0)
        check_sum(there, readers, readers.sums_to, covectors, terms.sum(0), sizes)
        whole = covectors @ there.read(readers.layer, readers.sublayer).double()
        vanishing = whole.abs() <= max(VANISHING, torch.finfo(run.view.dtype).eps / 8) * sizes
        left_out += [labels[number] for number, gone in zip(numbers, vanishing.tolist(), strict=True) if gone]
        chosen = torch.tensor([increases[number] for number in numbers], dtype=torch.float64, device=whole.device)
        weights = torch.where(vanishing, 0.0, chosen / torch.where(vanishing, 1.0, whole))
        demands.append(_Demand(readers.layer, readers.sublayer, readers.position, weights @ covectors))
    return demands, left_out
