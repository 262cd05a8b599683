"""The parts of one sublayer in one run, and how they are counted: which of them a label names, and what its row is."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.subvalues import JoinedSubvalues, NeuronSubvalues, Subvalues
from tl_subvalues.labels import Component, Unit
from tl_subvalues.model_view import MixtureOfExperts

_EXAMPLES: dict[Unit, str] = {"head_position": "L23H4@3", "attn_neuron": "L23H4D38@3"}


@dataclass(frozen=True)
class Parts:
    """One site's subvalues, and the axes that they are counted along, outermost first."""

    subvalues: Subvalues
    axes: dict[str, int]

    def index(self, component: Component) -> int:
        """Which of the parts a component is; it is one of the model's.

        Raises:
            ValueError: if this run has no part for it.
        """
        index = 0
        for name, size in self.axes.items():
            value = getattr(component, name)
            if value is None:
                raise ValueError(f"it names no {name}, as in {_EXAMPLES[component.unit]!r}")
            if not value < size:
                raise ValueError(f"{name} {value} is not below {size}")
            index = index * size + value
        return index

    def written(self, component: Component, device: torch.device | None = None) -> Float[Tensor, " d_model"]:
        """What a component writes: a neuron its row, sign as stored, everything else its output.

        Raises:
            ValueError: if it is none of the parts.
        """
        if component.unit == "attn_neuron" and component.position is None:  # the same row at every source position
            component = replace(component, position=0)
        index = self.index(component)
        if isinstance(self.subvalues, NeuronSubvalues):
            return _row(self.subvalues, index % len(self.subvalues.directions))
        return self.subvalues.vectors(torch.tensor([index], device=device))[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What tells the parts apart, innermost first."""
        return tuple(reversed(self.axes))

    def fields(self, index: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """Head, position, dim or neuron of the chosen parts."""
        found: dict[str, Tensor] = {}
        rest = index
        for name, size in reversed(self.axes.items()):
            found[name], rest = rest % size, rest // size
        return found

    @property
    def coefficients(self) -> Float[Tensor, " component"] | None:
        """Coefficients of all parts, where they are; None where they are no neurons."""
        return self.subvalues.coefficients if isinstance(self.subvalues, NeuronSubvalues) else None


@dataclass(frozen=True)
class ExpertParts(Parts):
    """The neurons of a mixture's experts that the token is sent to; `experts` are their numbers, in order."""

    experts: tuple[int, ...]
    mixture: MixtureOfExperts

    @property
    def joined(self) -> JoinedSubvalues:
        """The subvalues, expert by expert."""
        assert isinstance(self.subvalues, JoinedSubvalues)
        return self.subvalues

    @property
    def names(self) -> tuple[str, ...]:
        """What tells the parts apart."""
        return "expert", "neuron"

    def fields(self, index: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """Expert and neuron of the chosen parts."""
        group, neuron = self.joined.numbering.locate(index)
        return {"expert": torch.tensor(self.experts, dtype=torch.long)[group.cpu()], "neuron": neuron}

    @property
    def coefficients(self) -> Float[Tensor, " component"]:
        """Coefficients of all parts, where they are."""
        return self.joined.coefficients

    def index(self, component: Component) -> int:
        """Which of the parts a component is.

        Raises:
            ValueError: if it belongs to an expert that the token is not sent to.
        """
        if component.expert not in self.experts:
            active = ", ".join(map(str, self.experts))
            raise ValueError(f"expert {component.expert} is not active here, only {active} are")
        assert component.neuron is not None
        return self.joined.numbering.span(self.experts.index(component.expert)).start + component.neuron

    def written(self, component: Component, device: torch.device | None = None) -> Float[Tensor, " d_model"]:
        """The row of a neuron, of whatever expert."""
        assert component.expert is not None
        assert component.neuron is not None
        directions = self.mixture.expert(component.expert).W_out
        first = self.joined.groups[0]
        return _row(NeuronSubvalues(first.coefficients, directions, first.passage, first.scale), component.neuron)


def _row(neurons: NeuronSubvalues, index: int) -> Float[Tensor, " d_model"]:
    return neurons.passage.carry(neurons.directions[index].to(neurons.coefficients), neurons.scale)
