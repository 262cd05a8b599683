"""Integrated gradients of FFN neurons: the mean gradient while all FFN outputs grow from zero to the run's."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.everywhere import first_positions, parts_everywhere
from tl_subvalues.decomposition.run import Run
from tl_subvalues.model_view import shows_a_copy
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.gradient import end_hook


def integrated_effects(
    run: Run, tokens: Int[Tensor, " pos"], target: Target, steps: int
) -> dict[int, list[Float[Tensor, " neuron"]]]:
    """Layer -> ⟨what each neuron adds, the mean gradient⟩, of each expert's neurons, summed over positions, in nats.

    Args:
        run: at the position where the target is predicted.
        tokens: the prompt.
        target: whose measure.
        steps: midpoints between nothing and the run's outputs, each a forward and a backward pass.

    Raises:
        UnsupportedModelError: if the model, run again, ends elsewhere than the run did, or if a sublayer's output is
            shown by the release but cannot be replaced.
    """
    n = first_positions(run)
    with torch.no_grad():
        run.view.logits(tokens[None].clone(), [end_hook(run)])
    layers = [layer.layer for layer in run.view.layers if "mlp" in layer.sublayers]
    sums = dict.fromkeys(layers, torch.zeros(()))
    for step in range(steps):
        for layer, gradient in zip(layers, _gradients(run, tokens, target, layers, (step + 0.5) / steps), strict=True):
            sums[layer] = sums[layer].to(gradient) + gradient[:, :n] / steps
    found = {}
    for layer in layers:
        groups = parts_everywhere(run, layer, "mlp", "ffn_neuron", n)
        found[layer] = [group.products("ffn_neuron", group.inner(sums[layer]))[0].sum(0) for group in groups]
    return found


def _gradients(
    run: Run, tokens: Int[Tensor, " pos"], target: Target, layers: list[int], share: float
) -> list[Float[Tensor, "1 pos d_model"]]:
    """The measure's gradients with respect to FFN outputs, all of them at a share of the run's."""
    view = run.view
    outputs = [run.activations.output(layer, "mlp").to(view.dtype) * share for layer in layers]
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [output.clone().requires_grad_() for output in outputs]
        hooks = [(view.layer(layer).output_hook("mlp"), _put(leaf)) for layer, leaf in zip(layers, leaves, strict=True)]
        logits = view.logits(tokens[None].clone(), hooks)[0, run.position]
        value = target.value(logits.to(view.compute_dtype).log_softmax(-1))
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    for layer, gradient in zip(layers, gradients, strict=True):
        if gradient is None:
            raise shows_a_copy(view.name, layer, "mlp")
    return [gradient.to(view.device, view.compute_dtype) for gradient in gradients]


def _put(leaf: Tensor) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any) -> Tensor:
        return leaf

    return hook
