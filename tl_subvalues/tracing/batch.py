"""Several prompts at once, sharing what does not depend on the prompt: the forward pass, and a sweep's products.

A sweep over all neurons costs neurons · d_model · vocabulary multiply-adds for W_out @ W_U, which is the same for
every prompt: with the scale frozen, a neuron's bs-values in two prompts are multiples of each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_subvalues.decomposition.subvalues import NeuronSubvalues
from tl_subvalues.importance.search import BLOCK, Candidates, rank, ranking_of
from tl_subvalues.labels import Unit
from tl_subvalues.model_view import prompt_tokens, resolve_target, view_of
from tl_subvalues.model_view.indexing import resolve_index
from tl_subvalues.numerics.blocks import in_full_precision
from tl_subvalues.tracing.prompt import require_scale, trace_of_run
from tl_subvalues.tracing.trace import Trace


def trace_batch(
    model: Any,
    prompts: Sequence[Any],
    targets: Sequence[Any],
    *,
    position: int = -1,
    scale: str = "frozen",
    prepend_bos: bool | None = None,
    batch_size: int = 16,
    show_progress: bool = False,
) -> "TraceBatch":
    """Trace one target through each of several prompts, run in batches (padded on the left where lengths differ).

    Args:
        model: a TransformerLens model.
        prompts: texts or token ids, as `trace` takes them.
        targets: one for each prompt.
        position: where the targets are predicted, counted in each prompt; negative counts from its end.
        scale: as in `trace`.
        prepend_bos: as in `trace`.
        batch_size: prompts a forward pass.
        show_progress: show a progress bar over the prompts.

    Raises:
        UnsupportedModelError: as `trace`.
        ValueError: as `trace`, naming the prompt's number; and unless there is one target for each prompt.
    """
    view = view_of(model)
    require_scale(scale)
    if isinstance(prompts, str) or len(prompts) != len(targets) or not len(prompts):
        raise ValueError(f"a list of prompts and as many targets are needed, got {len(prompts)} and {len(targets)}.")
    asked = []
    for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        try:
            tokens = prompt_tokens(view, prompt, prepend_bos)
            asked.append((tokens, resolve_target(view, target), resolve_index(position, len(tokens), "position")))
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from error
    traces = []
    for start in tqdm(range(0, len(asked), batch_size), disable=not show_progress, unit="batch"):
        batch = asked[start : start + batch_size]
        runs = view.run_batch([tokens for tokens, _, _ in batch])
        for (tokens, target, at), (logits, cache) in zip(batch, runs, strict=True):
            traces.append(trace_of_run(view, tokens, target, at, scale, cache, logits))
    return TraceBatch(tuple(traces))


@dataclass(frozen=True, eq=False)
class TraceBatch(Sequence[Trace]):
    """Traces of several prompts; made by `trace_batch`. Tables are the traces' own, behind a column `prompt`."""

    traces: tuple[Trace, ...]

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, number: Any) -> Any:
        return self.traces[number]

    def ffn_neurons(self, top: int | None = 300, *, largest: bool = True, show_progress: bool = False) -> pd.DataFrame:
        """`Trace.ffn_neurons` of every prompt; with top=None, the sweep's products are shared."""
        return self._tables("ffn_neuron", top, largest, show_progress)

    def attn_neurons(self, top: int | None = 300, *, largest: bool = True, show_progress: bool = False) -> pd.DataFrame:
        """`Trace.attn_neurons` of every prompt; with top=None, the sweep's products are shared."""
        return self._tables("attn_neuron", top, largest, show_progress)

    @in_full_precision
    def _tables(self, unit: Unit, top: int | None, largest: bool, show_progress: bool) -> pd.DataFrame:
        prepared = [trace.candidates(unit) for trace in self.traces]
        many = [one.candidates for one in prepared]
        if top is None and all(one.readout.affine for one in many):
            scores = shared_sweep(many, show_progress)
            rankings = [ranking_of(one, s, largest) for one, s in zip(many, scores, strict=True)]
        else:
            rankings = [rank(one, top=top, largest=largest, show_progress=show_progress) for one in many]
        tables = [
            trace.table(one, ranking) for trace, one, ranking in zip(self.traces, prepared, rankings, strict=True)
        ]
        for number, table in enumerate(tables):
            table.insert(0, "prompt", number)
        whole = pd.concat(tables, ignore_index=True)
        whole.attrs = {"certificates": [table.attrs["certificate"] for table in tables]}
        return whole


def shared_sweep(many: Sequence[Candidates], show_progress: bool = False) -> list[Float[Tensor, " all"]]:
    """Increases of all neurons of several prompts of one model, in nats; affine readouts only."""
    scores = [torch.zeros(int(one.starts[-1]), dtype=one.residuals.dtype) for one in many]
    total = sum(len(group.directions) for group in many[0].groups if isinstance(group, NeuronSubvalues))
    with tqdm(total=total, disable=not show_progress, unit="neuron") as bar:
        for number in range(len(many[0].groups)):
            if not all(isinstance(one.groups[number], NeuronSubvalues) for one in many):
                _own_sweeps(many, number, scores)  # experts: every prompt has its own
                continue
            for rows, block in _group_sweep(many, number):
                for one, score, found in zip(many, scores, block, strict=True):
                    group = one.groups[number]
                    start = int(one.starts[number])
                    score[start : start + len(group)].view(*found.shape[:1], -1)[:, rows] = found.cpu()
                bar.update(rows.stop - rows.start)
    for one, score in zip(many, scores, strict=True):
        for doubtful in torch.nonzero(score.isnan()).flatten().split(BLOCK):
            score[doubtful] = one.evaluate(doubtful)
    return scores


def _own_sweeps(many: Sequence[Candidates], number: int, scores: list[Float[Tensor, " all"]]) -> None:
    """One sublayer's neurons, prompt by prompt, into their places in `scores`."""
    for one, score in zip(many, scores, strict=True):
        for part in torch.arange(int(one.starts[number]), int(one.starts[number + 1])).split(BLOCK):
            score[part] = one.evaluate(part)


def _group_sweep(many: Sequence[Candidates], number: int) -> Iterator[tuple[slice, list[Float[Tensor, "copies rows"]]]]:
    """One sublayer's neurons in blocks of directions: for each prompt, scores [copies of a direction, directions]."""
    groups = [group for one in many if isinstance(group := one.groups[number], NeuronSubvalues)]
    assert len(groups) == len(many)
    directions, readout = groups[0].directions, many[0].readout
    # With norms at scale 1, a prompt's subvalue is the direction's times coefficient / (post-norm's * final scale).
    multiples = []
    for one, group in zip(many, groups, strict=True):
        scales = one.readout.scale_at(one.residuals[0]) * (1.0 if group.scale is None else group.scale)
        multiples.append((group.coefficients / scales).view(-1, len(directions)))
    one_scale = multiples[0].new_ones(1)
    site = torch.tensor([i for i, m in enumerate(multiples) for _ in range(len(m))])
    log_p = [tuple(p[number] for p in one.log_p) for one in many]
    tokens = [one.token for one in many]
    for start in range(0, len(directions), BLOCK):
        rows = slice(start, min(start + BLOCK, len(directions)))
        lin = readout.linear(groups[0].passage.carry(directions[rows].to(one_scale), one_scale), one_scale)
        stacked = torch.cat([m[:, rows] for m in multiples])
        K = readout.log_mean_exp_of_multiples(lin, stacked, log_p, site, tokens)
        targets = torch.stack([readout.bs_value(lin, token) for token in tokens])
        yield rows, list((targets[site] * stacked - K).split([len(m) for m in multiples]))
