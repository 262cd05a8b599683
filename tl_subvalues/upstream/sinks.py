"""Attention sinks: positions whose residual stream is many times longer than the others'.

At such a position (the first, most often) a few entries are huge from early layers on, heads that have nothing to read
look there, and everything in it is scaled down by the norms (Xiao et al. 2023, arXiv 2309.17453; Sun et al. 2024, arXiv
2402.17762).
"""

import torch

from tl_subvalues.decomposition.run import Run

# Times the median length over the prompt's positions, in some layer. The first position of SmolLM2-135M has 60 to 200,
# of Gemma 3 270M 80; no other position of some 20 prompts had 5.
_TIMES = 10.0


def sinks(run: Run) -> frozenset[int]:
    """Positions that are attention sinks in this run; of prompts of fewer than three tokens, the first."""
    if run.n_positions < 3:
        return frozenset({0})
    found: set[int] = set()
    for layer in run.view.layers:
        lengths = run.activations.residual(layer.layer, layer.sublayers[0])[0].norm(dim=-1)
        found |= set(torch.nonzero(lengths > _TIMES * lengths.median()).flatten().tolist())
    return frozenset(found)
