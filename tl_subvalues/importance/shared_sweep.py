"""A sweep over all neurons of several prompts of one model, sharing the products that are the same for every prompt.

A sweep costs neurons · d_model · vocabulary multiply-adds for W_out @ W_U. With the scale frozen, a neuron's bs-values
in two prompts are multiples of each other, so that product is made once.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.subvalues import NeuronSubvalues
from tl_subvalues.importance.candidates import Candidates
from tl_subvalues.importance.search import BLOCK
from tl_subvalues.labels import NAMES
from tl_subvalues.progress import bar
from tl_subvalues.readout.reading import increases_of_multiples


def shared_sweep(many: Sequence[Candidates], show_progress: bool = False) -> list[Float[Tensor, " all"]]:
    """Increases of all neurons of several prompts of one model, in nats; affine readouts only."""
    scores = [torch.zeros(len(one), dtype=one.reading.residuals.dtype) for one in many]
    total = sum(len(group.directions) for group in many[0].groups if isinstance(group, NeuronSubvalues))
    with bar(f"{NAMES[many[0].parts.unit]} of {len(many)} prompts", total, "rows", show=show_progress) as shown:
        for number in range(len(many[0].groups)):
            if not all(isinstance(one.groups[number], NeuronSubvalues) for one in many):
                _own_sweeps(many, number, scores)  # experts: every prompt has its own
                continue
            for rows, block in _group_sweep(many, number):
                for one, score, found in zip(many, scores, block, strict=True):
                    score[one.numbering.span(number)].view(len(found), -1)[:, rows] = found.cpu()
                shown.update(rows.stop - rows.start)
    for one, score in zip(many, scores, strict=True):
        for doubtful in torch.nonzero(score.isnan()).flatten().split(BLOCK):
            score[doubtful] = one.evaluate(doubtful)
    return scores


def _own_sweeps(many: Sequence[Candidates], number: int, scores: list[Float[Tensor, " all"]]) -> None:
    """One sublayer's neurons, prompt by prompt, into their places in `scores`."""
    for one, score in zip(many, scores, strict=True):
        span = one.numbering.span(number)
        for part in torch.arange(span.start, span.stop).split(BLOCK):
            score[part] = one.evaluate(part)


def _group_sweep(many: Sequence[Candidates], number: int) -> Iterator[tuple[slice, list[Float[Tensor, "_ rows"]]]]:
    """One sublayer's neurons in blocks of directions: for each prompt, scores [copies of a direction, directions]."""
    groups = [group for one in many if isinstance(group := one.groups[number], NeuronSubvalues)]
    assert len(groups) == len(many)
    directions, readout = groups[0].directions, many[0].reading.readout
    # With norms at scale 1, a prompt's subvalue is the direction's times coefficient / (post-norm's * final scale).
    multiples = []
    for one, group in zip(many, groups, strict=True):
        scales = one.reading.readout.scale_at(one.reading.residuals[0]) * (1.0 if group.scale is None else group.scale)
        multiples.append((group.coefficients / scales).view(-1, len(directions)))
    one_scale = multiples[0].new_ones(1)
    at = [(one.reading, one.parts.numbers[number]) for one in many]
    for start in range(0, len(directions), BLOCK):
        rows = slice(start, min(start + BLOCK, len(directions)))
        lin = readout.linear(groups[0].passage.carry(directions[rows].to(one_scale), one_scale), one_scale)
        yield rows, increases_of_multiples(at, lin, [m[:, rows] for m in multiples])
