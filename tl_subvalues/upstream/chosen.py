"""Total effects of some named components, of whatever units: one gradient for all of them."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from tl_subvalues.decomposition.everywhere import first_positions, parts_everywhere
from tl_subvalues.decomposition.run import Run
from tl_subvalues.labels import Component
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.covectors import Covectors, Entering
from tl_subvalues.upstream.gradient import Asked, gradients


@no_autocast_no_grad
def total_effects(run: Run, tokens: Tensor, target: Target, components: Sequence[Component]) -> list[float]:
    """What each does through the rest of the model, by the true gradient, in nats; see `effects`.

    Args:
        run: of the prompt, at the position where the target is predicted.
        tokens: the prompt.
        target: whose measure.
        components: at the run's own position, or where they say that they are added.

    Raises:
        UnsupportedModelError: if a component's kind cannot be read at all positions.
    """
    n, found = first_positions(run), [0.0] * len(components)
    wanted: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i, component in enumerate(components):
        wanted[component.layer, component.sublayer].append(i)

    @torch.no_grad()
    def take(covectors: Covectors | Entering) -> None:
        if isinstance(covectors, Entering):
            return
        here = wanted[covectors.layer, covectors.sublayer]
        for unit in dict.fromkeys(components[i].unit for i in here):
            groups = parts_everywhere(run, covectors.layer, covectors.sublayer, unit, n)
            inner = (covectors.output,) if unit == "sublayer" else covectors.inner
            for group, own in zip(groups, inner, strict=True):
                mine = [i for i in here if (components[i].unit, components[i].expert) == (unit, _expert(group))]
                for at in dict.fromkeys(_at(run, components[i]) for i in mine):
                    there = slice(at, at + 1)
                    products = group.at(there).products(unit, own[:, there])[0, 0]
                    axes = list(group.axes(unit))[1:]
                    for i in mine:
                        if _at(run, components[i]) == at:
                            found[i] = float(products[tuple(getattr(components[i], axis) for axis in axes)])

    gradients([Asked(run, tokens, target, n, take)])
    return found


def _at(run: Run, component: Component) -> int:
    return run.position if component.at is None else component.at


def _expert(group: object) -> int | None:
    return getattr(group, "expert", None)
