"""Hooks that ablate neurons of a mixture's experts.

No hook holds their coefficients in every family. So the mixture's own input is seen, its routing and the chosen
neurons' coefficients are computed from it as the model does, and what they add is taken out of the mixture's output.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import Component
from tl_subvalues.model_view import MixtureOfExperts, ModelView
from tl_subvalues.model_view.indexing import resolve_index


def expert_hooks(
    view: ModelView, layer: int, chosen: Sequence[Sequence[Component]], kept: float, position: int | None
) -> list[tuple[str, Any]]:
    """Hooks that leave a share `kept` of the chosen neurons, a set of them for every row of a batch or one for all."""
    block, mixture = view.layer(layer), view.layer(layer).mixture()
    assert mixture is not None
    seen: dict[str, Tensor] = {}

    def keep_input(value: Tensor, hook: Any) -> None:
        seen["x"] = value

    def take_out(value: Tensor, hook: Any) -> Tensor:
        if "x" not in seen:
            raise UnsupportedModelError(
                f"{view.name}: layer {layer} does not show what its experts read before what they write, so their "
                "neurons cannot be ablated; the whole sublayer can."
            )
        x = seen.pop("x")
        masks = _masks(mixture, chosen, x.shape[1], position)
        added = (1.0 - kept) * _added(mixture, x, masks, view.compute_dtype)
        return (value.to(added) - added.view(value.shape)).to(value)

    return [(block.hook("mlp.hook_in"), keep_input), (block.hook("mlp.hook_out"), take_out)]


def _masks(
    mixture: MixtureOfExperts, chosen: Sequence[Sequence[Component]], n_positions: int, position: int | None
) -> dict[int, Bool[Tensor, "row pos neuron"]]:
    """Which neurons of which expert, row by row, and at which positions."""
    masks: dict[int, Tensor] = {}
    for row, found in enumerate(chosen):
        for component in found:
            assert component.expert is not None
            if component.expert not in masks:
                n_neurons = len(mixture.expert(component.expert).W_out)
                masks[component.expert] = torch.zeros(len(chosen), n_positions, n_neurons, dtype=torch.bool)
            at = position if component.at is None else component.at
            here = slice(None) if at is None else resolve_index(at, n_positions, "position")
            masks[component.expert][row, here, component.neuron] = True
    return masks


def _added(
    mixture: MixtureOfExperts,
    x: Float[Tensor, "batch pos d_model"],
    masks: dict[int, Bool[Tensor, "row pos neuron"]],
    dtype: torch.dtype,
) -> Float[Tensor, "batch pos d_model"]:
    """What the chosen neurons add to the mixture's output."""
    weights = mixture.weights(x.flatten(0, 1), dtype)
    flat = x.flatten(0, 1).to(dtype)
    total = torch.zeros_like(x, dtype=dtype)
    for expert, mask in masks.items():
        m = mixture.coefficients(expert, flat, weights[:, expert].to(flat)).view(*x.shape[:2], -1)
        # A weight of 0 is an expert that the token is not sent to, whatever its neurons would compute.
        m = m * (weights[:, expert] != 0).view(*x.shape[:2], 1).to(m)
        total += (m * mask.to(m.device)) @ mixture.expert(expert).W_out.to(m)
    return total
