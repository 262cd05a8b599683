"""Which subvalues raise the target's log-probability most: over all sublayers, in one order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_subvalues.importance import increases
from tl_subvalues.readout import Readout
from tl_subvalues.subvalues import Subvalues

# Subvalues made at a time: 1,024 vectors of 4,096 numbers are 16 MB.
BLOCK = 1024


@dataclass(frozen=True)
class Group:
    """One sublayer's parts, and the residual stream that they are added to."""

    residual: Float[Tensor, " d_model"]
    log_p: Float[Tensor, " vocab"]
    parts: Subvalues


@dataclass(frozen=True)
class Ranking:
    """Parts in order: part `index[i]` of group `group[i]` has the increase `increase[i]` (nats)."""

    group: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    increase: Float[Tensor, " n"]


def rank(
    readout: Readout,
    groups: Sequence[Group],
    token: int,
    *,
    top: int | None = None,
    largest: bool = True,
    show_progress: bool = False,
) -> Ranking:
    """The `top` parts with the highest (or lowest) log-probability increase; ties in order of computation.

    Raises:
        ValueError: if `top` is not a positive number.
    """
    if top is not None and (isinstance(top, bool) or top < 1):
        raise ValueError(f"top is a positive number or None for all, got {top!r}.")
    scores = [torch.zeros(0)]
    with tqdm(total=sum(len(g.parts) for g in groups), disable=not show_progress, unit="subvalue") as bar:
        for group in groups:
            for index in torch.arange(len(group.parts), device=group.residual.device).split(BLOCK):
                vectors = group.parts.vectors(index)
                scores.append(increases(readout, group.residual, vectors, token, group.log_p).cpu())
                bar.update(len(index))
    increase = torch.cat(scores)
    order = torch.sort(increase, descending=largest, stable=True).indices[:top]
    sizes = torch.tensor([len(g.parts) for g in groups])
    starts = sizes.cumsum(0) - sizes
    group_of = torch.repeat_interleave(torch.arange(len(groups)), sizes)[order]
    return Ranking(group_of, order - starts[group_of], increase[order])
