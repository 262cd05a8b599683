"""Total effects summed over positions: of a head or a neuron wherever it adds something, in one vector a sublayer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.everywhere import first_positions, parts_everywhere
from tl_subvalues.decomposition.run import Run
from tl_subvalues.labels import PART_OF, Unit
from tl_subvalues.upstream.covectors import Covectors, Entering
from tl_subvalues.upstream.effects import Prompted
from tl_subvalues.upstream.gradient import Asked
from tl_subvalues.upstream.led_back import EffectRule, lead_back


def summed_effects(
    many: Sequence[Prompted], unit: Unit, rule: EffectRule
) -> list[dict[int, list[Float[Tensor, " part"]]]]:
    """Of several runs of one model: layer -> its parts' total effects (of each expert's), summed over positions, nats.

    Args:
        many: the runs.
        unit: "head" or "ffn_neuron", whose parts have a sum over positions.
        rule: as for `effects_of`.
    """
    made = [_Summed(one.run, unit, first_positions(one.run), {}) for one in many]
    asked = [Asked(one.run, one.tokens, one.target, own.n, own.take) for one, own in zip(many, made, strict=True)]
    lead_back(asked, [one.final for one in many], rule)
    return [dict(sorted(own.found.items())) for own in made]


@dataclass(frozen=True)
class _Summed:
    """Sums as covectors come."""

    run: Run
    unit: Unit
    n: int
    found: dict[int, list[Tensor]]

    @torch.no_grad()
    def take(self, covectors: Covectors | Entering) -> None:
        """One sublayer's covectors."""
        if isinstance(covectors, Entering) or covectors.sublayer != PART_OF[self.unit]:
            return
        groups = parts_everywhere(self.run, covectors.layer, covectors.sublayer, self.unit, self.n)
        self.found[covectors.layer] = [
            group.products(self.unit, own)[0].sum(0) for group, own in zip(groups, covectors.inner, strict=True)
        ]
