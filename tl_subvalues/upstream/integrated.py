"""Integrated gradients: the mean gradient while the outputs of all FFN, or all attention, sublayers grow from zero."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.everywhere import first_positions, parts_everywhere
from tl_subvalues.decomposition.run import Run
from tl_subvalues.labels import Unit
from tl_subvalues.model_view import shows_a_copy
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.gradient import end_hook, prompts_together


def integrated_covectors(
    run: Run, tokens: Int[Tensor, " pos"], target: Target, sublayer: str, steps: int
) -> dict[int, Float[Tensor, "1 place d_model"]]:
    """Layer -> the measure's mean gradient with respect to what one sort of sublayer adds, in nats per unit of it.

    Args:
        run: at the position where the target is predicted.
        tokens: the prompt.
        target: whose measure.
        sublayer: "mlp" or "attn", whose outputs grow together, those of all layers.
        steps: midpoints between nothing and the run's outputs; as many at once, in a forward and a backward pass, as
            prompts go together.

    Raises:
        UnsupportedModelError: if the model, run again, ends elsewhere than the run did, or if a sublayer's output is
            shown by the release but cannot be replaced.
    """
    n = first_positions(run)
    with torch.no_grad():
        run.view.logits(tokens[None].clone(), [run.position], [end_hook(run)])
    layers = [layer.layer for layer in run.view.layers if sublayer in layer.sublayers]
    left = [(step + 0.5) / steps for step in range(steps)]
    sums, together = dict.fromkeys(layers, torch.zeros(())), min(steps, prompts_together(run.view, len(tokens)))
    while left:
        try:
            gradients = _gradients(run, tokens, target, layers, sublayer, left[:together])
        except torch.OutOfMemoryError:
            if together == 1:
                raise
            together //= 2
            continue
        left = left[together:]
        for layer, gradient in zip(layers, gradients, strict=True):
            sums[layer] = sums[layer].to(gradient) + gradient[:, :n].sum(0, keepdim=True) / steps
    return sums


def integrated_effects(
    run: Run, tokens: Int[Tensor, " pos"], target: Target, unit: Unit, steps: int, positions: slice
) -> dict[int, list[Float[Tensor, "place *axes"]]]:
    """Layer -> ⟨what each part of a unit adds at some positions, the mean gradient there⟩, of each expert's, in nats.

    Args:
        run: at the position where the target is predicted.
        tokens: the prompt.
        target: whose measure.
        unit: "head", "attn_neuron" or "ffn_neuron"; outputs of all sublayers that have such parts grow together.
        steps: as for `integrated_covectors`.
        positions: where parts are added.
    """
    sublayer, n = "mlp" if unit == "ffn_neuron" else "attn", first_positions(run)
    found = {}
    for layer, covectors in integrated_covectors(run, tokens, target, sublayer, steps).items():
        groups = [group.at(positions) for group in parts_everywhere(run, layer, sublayer, unit, n)]
        found[layer] = [group.products(unit, group.inner(covectors[:, positions]))[0] for group in groups]
    return found


def _gradients(
    run: Run,
    tokens: Int[Tensor, " pos"],
    target: Target,
    layers: list[int],
    sublayer: str,
    shares: Sequence[float],
) -> list[Float[Tensor, "step pos d_model"]]:
    """The measure's gradients with respect to sublayers' outputs, all of them at a share of the run's: row by row."""
    view = run.view
    outputs = [run.activations.output(layer, sublayer).to(view.dtype) for layer in layers]
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [torch.cat([output * share for share in shares]).requires_grad_() for output in outputs]
        names = [view.layer(layer).output_hook(sublayer) for layer in layers]
        hooks = [(name, _put(leaf)) for name, leaf in zip(names, leaves, strict=True)]
        logits = view.logits(tokens.repeat(len(shares), 1), [run.position] * len(shares), hooks)
        value = target.value(logits.to(view.compute_dtype).log_softmax(-1)).sum()
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    for layer, gradient in zip(layers, gradients, strict=True):
        if gradient is None:
            raise shows_a_copy(view.name, layer, sublayer)
    return [gradient.to(view.device, view.compute_dtype) for gradient in gradients]


def _put(leaf: Tensor) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any) -> Tensor:
        return leaf

    return hook
