"""Means of components over a set of reference prompts: what a mean ablation puts in their place.

The prompts are run in batches of equal length (nothing is padded), and sums are taken as they run: memory does not grow
with their number.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.model_view import ModelView, prompt_tokens

# (layer, "attn" | "mlp" | "post" | "z", source position or None)
Place = tuple[int, str, int | None]
Means = Mapping[Place, Tensor]

_BATCH = 8


class _Sum:
    """A running sum over positions, in float64, and how many there were."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0

    def add(self, values: Float[Tensor, "n *rest"], count: int) -> None:
        summed = values.sum(0, dtype=torch.float64).cpu()
        self.total = summed if self.total is None else self.total + summed
        self.count += count


@torch.no_grad()
def reference_means(view: ModelView, places: set[Place], reference: Any) -> Means:
    """The mean of what is seen at each place, over all positions of all reference prompts.

    z is [head, d_head]; with a source position p it is what the heads take from there (pattern times value), over the
    query positions from p on.

    Raises:
        ValueError: for no prompts, or a source position that none of them reaches.
    """
    sums = {place: _Sum() for place in places}
    hooks = [hook for place, running in sums.items() for hook in _summing_hooks(view, place, running)]
    for batch in _batches(view, reference):
        view.logits(batch, [0] * len(batch), hooks)
    for (layer, _, source), running in sums.items():
        if running.count == 0:
            raise ValueError(
                f"no reference prompt has a position {source}, which layer {layer}'s mean is to be taken at."
            )
    return {
        place: (running.total / running.count).to(view.compute_dtype)
        for place, running in sums.items()
        if running.total is not None
    }


def _summing_hooks(view: ModelView, place: Place, running: _Sum) -> list[tuple[str, Callable[..., None]]]:
    layer, what, source = place
    block = view.layer(layer)
    if what != "z":

        def add_rows(value: Tensor, hook: Any) -> None:
            rows = value.flatten(0, -2)
            running.add(rows, len(rows))

        return [(block.hook("mlp.hook_post") if what == "post" else block.output_hook(what), add_rows)]
    n_heads, d_head, _ = block.attention().W_O.shape
    if source is None:

        def add_z(value: Tensor, hook: Any) -> None:
            z = value.reshape(-1, n_heads, d_head)
            running.add(z, len(z))

        return [(block.hook("attn.hook_z"), add_z)]
    seen: dict[str, Tensor] = {}

    def see_values(value: Tensor, hook: Any) -> None:
        seen["v"] = value

    def add_share(pattern: Tensor, hook: Any) -> None:
        values = seen.pop("v")
        batch, _, queries, keys = pattern.shape
        values = block.values_by_source(values, keys)
        if source < keys:
            taken = pattern[:, :, source:, source].double().sum(-1)[..., None]  # [batch, head, 1]
            running.add(taken * values[:, source], batch * (queries - source))

    return [(block.hook("attn.hook_v"), see_values), (block.hook("attn.hook_pattern"), add_share)]


def _batches(view: ModelView, reference: Any) -> Iterator[Int[Tensor, "batch pos"]]:
    """The reference prompts, those of one length together."""
    by_length: dict[int, list[Tensor]] = {}
    for prompt in _prompts(reference):
        tokens = prompt_tokens(view, prompt)
        by_length.setdefault(len(tokens), []).append(tokens)
    if not by_length:
        raise ValueError("reference= holds no prompts; pass a list of texts or token ids.")
    for prompts in by_length.values():
        for start in range(0, len(prompts), _BATCH):
            yield torch.stack(prompts[start : start + _BATCH])


def _prompts(reference: Any) -> Iterator[Any]:
    if isinstance(reference, str):
        yield reference
        return
    if isinstance(reference, Tensor) and reference.ndim == 1:
        yield reference
        return
    for prompt in reference:
        if isinstance(prompt, Tensor) and prompt.ndim == 2:
            yield from prompt
        else:
            yield prompt
