"""Total effects summed over positions: of a head or a neuron wherever it adds something, in one vector a sublayer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.everywhere import first_positions, parts_everywhere
from tl_subvalues.decomposition.run import Run
from tl_subvalues.labels import PART_OF, Unit
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.covectors import Covectors, Entering
from tl_subvalues.upstream.led_back import EffectRule, lead_back


def summed_effects(
    run: Run,
    tokens: Int[Tensor, " pos"],
    target: Target,
    final: Float[Tensor, " d_model"],
    unit: Unit,
    rule: EffectRule,
) -> dict[int, list[Float[Tensor, " part"]]]:
    """Layer -> the total effects of its parts of a unit (of each expert's), summed over all positions, in nats.

    Args:
        run: at the position where the target is predicted.
        tokens: the prompt.
        target: whose measure.
        final: γ_final, as for `effects_of`.
        unit: "head" or "ffn_neuron", whose parts have a sum over positions.
        rule: as for `effects_of`.
    """
    found: dict[int, list[Tensor]] = {}
    n = first_positions(run)

    @torch.no_grad()
    def take(covectors: Covectors | Entering) -> None:
        if isinstance(covectors, Entering) or covectors.sublayer != PART_OF[unit]:
            return
        groups = parts_everywhere(run, covectors.layer, covectors.sublayer, unit, n)
        found[covectors.layer] = [
            group.products(unit, own)[0].sum(0) for group, own in zip(groups, covectors.inner, strict=True)
        ]

    lead_back(run, tokens, target, final, rule, n, take)
    return dict(sorted(found.items()))
