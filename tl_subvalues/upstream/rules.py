"""Rules: how an FFN neuron's coefficient, which is not linear in what the neuron reads, is made so."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from tl_subvalues.upstream.projections import Projected, ratio


@dataclass(frozen=True)
class Factors:
    """A coefficient as up · (the up projection) + gate · (the gate projection) + constant, the factors held."""

    up: Float[Tensor, "pos neuron"]
    gate: Float[Tensor, "pos neuron"] | None
    constants: tuple[Float[Tensor, "pos neuron"], ...]


@runtime_checkable
class Rule(Protocol):
    """How a coefficient is made linear."""

    def factors(self, made: Projected) -> Factors | None:
        """The factors; None where nothing leads through FFN neurons."""
        ...


@dataclass(frozen=True)
class Frozen:
    """The gate is held: act(gate) · up; of a plain FFN, act(pre)/pre · pre."""

    def factors(self, made: Projected) -> Factors:
        """All through the up projection."""
        return Factors(made.factor, None, _there(made.offset, made.constant))


@dataclass(frozen=True)
class Half:
    """Half the effect of a gated neuron through its up projection, half through its gate, act(gate)/gate held."""

    def factors(self, made: Projected) -> Factors:
        """Half each; a plain FFN has no gate to share with."""
        if made.gate is None:
            return Frozen().factors(made)
        offset = None if made.offset is None else 0.5 * made.offset
        through_gate = 0.5 * ratio(made.product, made.gate.values)
        return Factors(0.5 * made.factor, through_gate, _there(offset, made.constant))


@dataclass(frozen=True)
class Cut:
    """Nothing leads through FFN neurons: attention and norms alone."""

    def factors(self, made: Projected) -> None:
        """None."""
        return


def _there(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor is not None)
