"""Attention sinks: positions where heads look that have nothing to read (Xiao et al. 2023, arXiv 2309.17453).

At such a position (the first, most often) a few entries of the residual stream are huge from early layers on, and
everything in it is scaled down by the norms (Sun et al. 2024, arXiv 2402.17762): its parts have large effects through
norms and patterns, whose size and sign an ablation may not bear out.
"""

import torch

from tl_subvalues.decomposition.run import Run

# Mean attention from the positions that see it. Of 20 prompts of 4 to 18 tokens the first position has 0.49 to 0.76 in
# SmolLM2-135M and 0.55 to 0.69 in Gemma 3 270M, no other more than 0.19; of 630 tokens it has 0.30, no other 0.1.
# Lengths do not tell: a comma of Gemma's is 15 times as long as the median and is not looked at.
_SHARE = 1 / 4
_JUDGES = 3  # later positions that must be there to tell, but for the first position


def sinks(run: Run) -> frozenset[int]:
    """Positions that get more than a quarter of the attention of (three or more) later ones, over heads and layers."""
    looked = torch.zeros(run.n_positions, dtype=torch.float64)
    seen = torch.zeros_like(looked)
    for layer in run.view.layers:
        if "attn" in layer.sublayers:
            pattern = run.activations.pattern(layer.layer)[0]
            weights = pattern.tril(-1)
            looked += weights.sum((0, 1), dtype=torch.float64).cpu()
            seen += (weights > 0).sum((0, 1)).cpu()  # what lies outside a window sees nothing of it
    found = looked > _SHARE * seen
    found[max(1, run.n_positions - _JUDGES) :] = False
    return frozenset(torch.nonzero(found).flatten().tolist())
