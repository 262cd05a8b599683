"""Covectors of every sublayer under an effect's rule: the true gradient, or led back through the frozen model."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.run import Run
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.frozen import back
from tl_subvalues.upstream.gradient import Take, gradients
from tl_subvalues.upstream.rules import Frozen, Half, Rule

EffectRule = Literal["gradient", "frozen", "half"]
FROZEN_RULES: dict[str, Rule] = {"frozen": Frozen(), "half": Half()}


def lead_back(
    run: Run,
    tokens: Int[Tensor, " pos"],
    target: Target,
    final: Float[Tensor, " d_model"],
    rule: EffectRule,
    n: int,
    take: Take,
) -> None:
    """Hand every sublayer's covectors to `take`, the last sublayer's first.

    Args:
        run: at the position where the target is predicted.
        tokens: the prompt.
        target: whose measure.
        final: γ_final, where the rules "frozen" and "half" begin.
        rule: which covectors.
        n: how many first positions.
        take: gets a sublayer's covectors, and at last those of what enters layer 0.

    Raises:
        UnsupportedModelError: as `gradients` and `back`.
    """
    if rule == "gradient":
        gradients(run, tokens, target, n, take)
        return
    start = torch.zeros(1, n, len(final), dtype=final.dtype, device=final.device)
    start[0, run.position] = final
    for covectors in back(run, FROZEN_RULES[rule], start):
        take(covectors)
