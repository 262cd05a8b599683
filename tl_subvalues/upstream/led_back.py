"""Covectors of every sublayer under an effect's rule: the true gradient, or led back through the frozen model."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.upstream.frozen import back
from tl_subvalues.upstream.gradient import Asked, gradients
from tl_subvalues.upstream.rules import Frozen, Half, Rule

EffectRule = Literal["gradient", "frozen", "half"]
FROZEN_RULES: dict[str, Rule] = {"frozen": Frozen(), "half": Half()}


def lead_back(many: Sequence[Asked], finals: Sequence[Float[Tensor, " d_model"]], rule: EffectRule) -> None:
    """Hand every sublayer's covectors of several runs of one model to their `take`, the last sublayer's first.

    Args:
        many: whose covectors.
        finals: γ_final of each, where the rules "frozen" and "half" begin.
        rule: which covectors.

    Raises:
        UnsupportedModelError: as `gradients` and `back`.
    """
    if rule == "gradient":
        gradients(many)
        return
    for one, final in zip(many, finals, strict=True):
        start = torch.zeros(1, one.n, len(final), dtype=final.dtype, device=final.device)
        start[0, one.run.position] = final
        for covectors in back(one.run, FROZEN_RULES[rule], start):
            one.take(covectors)
