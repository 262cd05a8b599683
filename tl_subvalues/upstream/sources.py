"""What was added to the residual stream before a place: embeddings, sublayers whole or in parts, constant parts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tl_subvalues.decomposition.parts import Parts
from tl_subvalues.decomposition.run import Run, Site
from tl_subvalues.decomposition.subvalues import WholeSubvalues
from tl_subvalues.labels import PART_OF, Unit, bias_label, labels_of


@dataclass(frozen=True)
class Source:
    """Components that were added at one place: a sublayer's parts, a constant, or an embedding."""

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


def sources(run: Run, by: Unit, sites: Iterable[Site]) -> Iterator[Source]:
    """What the given sites added to the residual stream at the run's position, and what entered layer 0.

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
