"""Several prompts at once, sharing what does not depend on the prompt: the forward pass, and a sweep's products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from tl_subvalues.importance.search import rank, ranked_by
from tl_subvalues.importance.shared_sweep import shared_sweep
from tl_subvalues.labels import Unit
from tl_subvalues.model_view import prompt_tokens, resolve_target, view_of
from tl_subvalues.model_view.indexing import resolve_index
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.readout import Scale, require_scale
from tl_subvalues.readout.targets import Target
from tl_subvalues.tracing.prompt import trace_of_run
from tl_subvalues.tracing.trace import Trace


def trace_batch(
    model: Any,
    prompts: Sequence[Any],
    targets: Sequence[Any],
    *,
    position: int = -1,
    scale: Scale = "frozen",
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
            asked_of = Target((resolve_target(view, target),))
            asked.append((tokens, asked_of, resolve_index(position, len(tokens), "position")))
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

    @no_autocast_no_grad
    def _tables(self, unit: Unit, top: int | None, largest: bool, show_progress: bool) -> pd.DataFrame:
        many = [trace.candidates(unit) for trace in self.traces]
        if top is None and all(one.reading.readout.affine for one in many):
            found = [ranked_by(one, s, largest) for one, s in zip(many, shared_sweep(many, show_progress), strict=True)]
        else:
            found = [rank(one, top=top, largest=largest, show_progress=show_progress) for one in many]
        tables = [trace.table(one, ranked) for trace, one, ranked in zip(self.traces, many, found, strict=True)]
        for number, table in enumerate(tables):
            table.insert(0, "prompt", number)
        whole = pd.concat(tables, ignore_index=True)
        whole.attrs = {"certificates": [table.attrs["certificate"] for table in tables]}
        return whole
