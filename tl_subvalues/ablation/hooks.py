"""Hook functions that put something else in a component's place, for whole batches or with a set of components a row.

Each edits one hook of one layer; what it needs of that run's earlier hooks it keeps until then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_subvalues.ablation.expert_hooks import expert_hooks
from tl_subvalues.ablation.reference import Means, Place
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import Component
from tl_subvalues.model_view import ModelView, sum_tolerance
from tl_subvalues.model_view.indexing import resolve_index

HookFunction = Callable[..., Tensor | None]
Hook = tuple[str, HookFunction]


@dataclass(frozen=True)
class Mode:
    """What takes a component's place: its value times a factor, or its mean where there is one."""

    factor: float = 0.0
    means: Means | None = None

    def replacement(self, value: Tensor, place: Place) -> Tensor:
        """What is put where a component with this value was."""
        if self.means is not None:
            return self.means[place].to(value)
        return torch.zeros_like(value) if self.factor == 0.0 else value * self.factor


def places(component: Component) -> list[Place]:
    """Where a component's value is seen: (layer, what, source position)."""
    if component.unit == "sublayer":
        return [(component.layer, component.sublayer, None)]
    if component.unit == "ffn_neuron":
        return [(component.layer, "post" if component.expert is None else "expert", None)]
    return [(component.layer, "z", component.position)]


def make_hooks(
    view: ModelView, rows: Sequence[Sequence[Component]], mode: Mode, position: int | None = None
) -> list[Hook]:
    """Hooks for one set of components in every prompt of a batch, or for a set of its own in each.

    Args:
        view: the model.
        rows: one set, or as many as the batch has prompts.
        mode: what takes the components' place.
        position: where, None for everywhere.
    """
    sets: dict[tuple[int, str], list[list[Component]]] = {}
    for row, chosen in enumerate(rows):
        for component in chosen:
            (layer, what, _), *_ = places(component)
            sets.setdefault((layer, what), [[] for _ in rows])[row].append(component)
    hooks: list[Hook] = []
    for (layer, what), by_row in sorted(sets.items()):
        if what == "post":
            hooks.append(_ffn_hook(view, layer, by_row, mode, position))
        elif what == "expert":
            hooks += expert_hooks(view, layer, by_row, mode.factor, position)
        elif what == "z":
            hooks += _head_hooks(view, layer, by_row, mode, position)
        else:
            hooks.append(_sublayer_hook(view, layer, what, by_row, mode, position))
    return hooks


def _one_after_another(first: HookFunction, second: HookFunction) -> HookFunction:
    def both(value: Tensor, hook: Any) -> Tensor | None:
        return second(first(value, hook), hook)

    return both


def _sublayer_hook(
    view: ModelView, layer: int, what: str, chosen: Sequence[Sequence[Component]], mode: Mode, position: int | None
) -> Hook:
    masks = {at: torch.tensor([bool(row) for row in rows])[:, None, None] for at, rows in _by_place(chosen).items()}

    def ablate_sublayer(value: Tensor, hook: Any) -> Tensor:
        where = _anywhere(masks, value, position, 1)
        return _replaced(value, where, mode.replacement(value, (layer, what, None)))

    return view.layer(layer).output_hook(what), ablate_sublayer


def _ffn_hook(
    view: ModelView, layer: int, chosen: Sequence[Sequence[Component]], mode: Mode, position: int | None
) -> Hook:
    n_neurons = view.layer(layer).ffn().W_out.shape[0]
    masks: dict[int | None, Tensor] = {}
    for at, rows in _by_place(chosen).items():
        masks[at] = torch.zeros(len(rows), 1, n_neurons, dtype=torch.bool)
        for row, found in enumerate(rows):
            masks[at][row, 0, [component.neuron for component in found]] = True

    def ablate_neurons(value: Tensor, hook: Any) -> Tensor:
        if value.shape[-1] != n_neurons:
            raise UnsupportedModelError(
                f"{view.name}: layer {layer} passes {value.shape[-1]} coefficients for {n_neurons} FFN neurons, so "
                "they cannot be ablated one by one; whole sublayers still can."
            )
        where = _anywhere(masks, value, position, 1)
        return _replaced(value, where, mode.replacement(value, (layer, "post", None)))

    return view.layer(layer).hook("mlp.hook_post"), ablate_neurons


def _head_hooks(
    view: ModelView, layer: int, chosen: Sequence[Sequence[Component]], mode: Mode, position: int | None
) -> list[Hook]:
    """Heads and attention neurons of one layer."""
    n_heads, d_head, _ = view.layer(layer).attention().W_O.shape
    nothing = torch.zeros(len(chosen), 1, n_heads, d_head, dtype=torch.bool)
    whole, by_source = dict[int | None, Tensor](), dict[tuple[int, int | None], Tensor]()
    for row, found in enumerate(chosen):
        for component in found:
            p, at = component.position, component.at
            mask = (
                whole.setdefault(at, nothing.clone()) if p is None else by_source.setdefault((p, at), nothing.clone())
            )
            mask[row, 0, component.head, slice(None) if component.dim is None else component.dim] = True
    # What is ablated whole, or wherever it is added, is not ablated once more source by source or place by place.
    everywhere = whole.get(None, nothing)
    sources: dict[tuple[int, int | None], Tensor] = {}
    for (p, at), mask in by_source.items():
        left = mask & ~everywhere & ~whole.get(at, nothing)
        if at is not None:
            left &= ~by_source.get((p, None), nothing)
        if left.any():
            sources[p, at] = left
    block = view.layer(layer)

    def ablate_heads(value: Tensor, hook: Any) -> Tensor:
        z = value.reshape(*value.shape[:-2], n_heads, d_head)  # however the model split it
        where = _anywhere(whole, z, position, 2)
        return _replaced(z, where, mode.replacement(z, (layer, "z", None))).reshape(value.shape)

    hooks = dict(_source_hooks(view, layer, sources, mode, position)) if sources else {}
    if whole:
        at_z = block.hook("attn.hook_z")
        hooks[at_z] = _one_after_another(hooks[at_z], ablate_heads) if at_z in hooks else ablate_heads
    return list(hooks.items())


def _source_hooks(
    view: ModelView,
    layer: int,
    sources: Mapping[tuple[int, int | None], Bool[Tensor, "row 1 head d_head"]],
    mode: Mode,
    position: int | None,
) -> list[Hook]:
    """Heads and attention neurons at source positions and places, which are the keys of `sources`."""
    block, attention = view.layer(layer), view.layer(layer).attention()
    n_heads, d_head, _ = attention.W_O.shape
    own_values = attention.W_V is not None and attention.W_V.shape[0] == n_heads
    if own_values and position is None and mode.means is None and all(at is None for _, at in sources):
        # z is linear in v: for all queries at once the value itself can be scaled, whatever the pattern.
        n_values: list[int] = []

        def scale_values(values: Tensor, hook: Any) -> Tensor:
            n_values[:] = [values.shape[-3]]
            values = block.values_by_source(values, values.shape[-3])
            for (p, _), mask in sources.items():
                where = _where(mask, values, resolve_index(p, values.shape[-3], "source position"), 2)
                values = _replaced(values, where, mode.replacement(values, (layer, "z", p)))
            return values

        def require_all_values(pattern: Tensor, hook: Any) -> None:
            if n_values != [pattern.shape[-1]]:
                raise UnsupportedModelError(
                    f"{view.name}: layer {layer} has values at {n_values} of {pattern.shape[-1]} source positions (a "
                    "run with past keys and values), so none can be ablated; whole heads still can."
                )

        return [(block.hook("attn.hook_v"), scale_values), (block.hook("attn.hook_pattern"), require_all_values)]
    heads = torch.stack([mask.flatten(0, 1).any(0).any(-1) for mask in sources.values()]).any(0)
    seen: dict[str, Tensor] = {}

    def see(name: str) -> HookFunction:
        def keep_until_z(value: Tensor, hook: Any) -> None:
            if name == "v":
                seen.clear()  # what a run that broke off had left
            seen[name] = value

        return keep_until_z

    def take_out_shares(value: Tensor, hook: Any) -> Tensor:
        if len(seen) < 2:
            seen.clear()
            raise UnsupportedModelError(
                f"{view.name}: layer {layer} shows its attention pattern only after z, so a source position cannot be "
                "ablated like this; with mode='zero' or a factor, and position=None, it can where no heads share "
                "their values, and whole heads always can."
            )
        pattern, values = seen.pop("pattern"), seen.pop("v")
        values = block.values_by_source(values, pattern.shape[-1])
        z = value.reshape(*value.shape[:-2], n_heads, d_head)
        _require_recorded(view, layer, z, pattern, values, heads)
        total = z.to(torch.promote_types(z.dtype, pattern.dtype))
        for (p, at), mask in sources.items():
            source = resolve_index(p, values.shape[-3], "source position")
            share = pattern[..., source].transpose(-1, -2)[..., None] * values[..., source, :, :].unsqueeze(-3)
            changed = total + mode.replacement(share, (layer, "z", p)) - share
            total = _replaced(total, _where(mask, total, position if at is None else at, 2), changed)
        return total.to(z.dtype).reshape(value.shape)

    return [
        (block.hook("attn.hook_v"), see("v")),
        (block.hook("attn.hook_pattern"), see("pattern")),
        (block.hook("attn.hook_z"), take_out_shares),
    ]


@torch.no_grad()
def _require_recorded(
    view: ModelView, layer: int, z: Tensor, pattern: Tensor, values: Tensor, heads: Bool[Tensor, " head"]
) -> None:
    """Raise unless z, at the heads concerned, is made of the pattern and values that were seen."""
    chosen = heads.nonzero().flatten().to(z.device)
    exact = torch.promote_types(pattern.dtype, torch.float32)
    mine = pattern.index_select(-3, chosen).to(exact)
    made = torch.einsum("...hqk,...khe->...qhe", mine, values.index_select(-2, chosen).to(exact))
    theirs = z.index_select(-2, chosen).to(exact)
    error = float((made - theirs).abs().max())
    if not error <= sum_tolerance(view) * float(theirs.abs().max()):
        raise ValueError(
            f"layer {layer}: z of the heads {chosen.tolist()} is not their pattern times their values (off by "
            f"{error:.2g}), so no source position's share can be taken out; if other hooks are in use, list those that "
            "edit values or the pattern before the ablation's, and those that edit z after them."
        )


def _by_place(chosen: Sequence[Sequence[Component]]) -> dict[int | None, list[list[Component]]]:
    """Sets of components by where they are ablated: None for those that the label does not place."""
    places = {component.at for row in chosen for component in row}
    return {at: [[component for component in row if component.at == at] for row in chosen] for at in places}


def _anywhere(
    masks: Mapping[int | None, Bool[Tensor, "row 1 *rest"]], value: Tensor, position: int | None, axes: int
) -> Bool[Tensor, "..."]:
    """The mask of what to replace at any of some places; None is the ablation's own position, or everywhere."""
    wheres = [_where(mask, value, position if at is None else at, axes) for at, mask in masks.items()]
    return torch.stack(wheres).any(0)


def _where(mask: Bool[Tensor, "row 1 *rest"], value: Tensor, position: int | None, axes: int) -> Bool[Tensor, "..."]:
    """The mask of what to replace: `mask`, at one position or all; `axes` follow the position's in `value`."""
    n_positions = value.shape[-axes - 1]
    if len(mask) > 1 and (value.ndim != axes + 2 or len(value) != len(mask)):
        raise ValueError(f"{len(mask)} sets of components need a batch of as many prompts, got {tuple(value.shape)}.")
    at = torch.ones(n_positions, dtype=torch.bool, device=value.device)
    if position is not None:
        at.zero_()
        at[resolve_index(position, n_positions, "position")] = True
    where = mask.to(value.device) & at.reshape(n_positions, *(1 for _ in range(axes)))
    return where if value.ndim == axes + 2 else where[0]


def _replaced(value: Tensor, where: Tensor, replacement: Tensor) -> Tensor:
    return torch.where(where, replacement, value)
