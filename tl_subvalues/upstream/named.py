"""Total effects of components that are named: one gradient pass for all of them, whatever their units."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.everywhere import first_positions, parts_everywhere
from tl_subvalues.decomposition.run import Run
from tl_subvalues.labels import Component, Unit, parse_label
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.covectors import Covectors, Entering
from tl_subvalues.upstream.gradient import gradients


@no_autocast_no_grad
def total_effects(
    run: Run, tokens: Int[Tensor, " pos"], target: Target, labels: Sequence[str]
) -> Float[Tensor, " label"]:
    """⟨what each adds at the run's position, the true gradient there⟩, in nats: rule "gradient" of `effects`.

    Args:
        run: at the position where the target is predicted.
        tokens: the prompt.
        target: whose measure.
        labels: of this run's components, without a position where they are added.

    Raises:
        UnsupportedModelError: if no gradient reaches a sublayer, or its parts cannot be told apart, naming it.
    """
    n, here = first_positions(run), slice(run.position, run.position + 1)
    found = torch.zeros(len(labels), dtype=torch.float64)
    asked: dict[tuple[int, str, Unit], list[tuple[int, Component]]] = defaultdict(list)
    for row, label in enumerate(labels):
        component = parse_label(label)
        asked[component.layer, component.sublayer, component.unit].append((row, component))

    @torch.no_grad()
    def take(covectors: Covectors | Entering) -> None:
        if isinstance(covectors, Entering):
            return
        for (layer, sublayer, unit), members in asked.items():
            if (layer, sublayer) != (covectors.layer, covectors.sublayer):
                continue
            inner = (covectors.output,) if unit == "sublayer" else covectors.inner
            groups = parts_everywhere(run, layer, sublayer, unit, n)
            for group, own in zip(groups, inner, strict=True):
                part = group.at(here)
                products = part.products(unit, own[:, here])[0, 0]
                axes = list(part.axes(unit))[1:]
                expert = getattr(part, "expert", None)
                mine = [(row, component) for row, component in members if component.expert == expert]
                for row, component in mine:
                    found[row] = products[tuple(getattr(component, axis) for axis in axes)]

    gradients(run, tokens, target, n, take)
    return found
