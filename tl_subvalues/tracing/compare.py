"""Two traces of one model, component by component: another prompt, or another target."""

from collections.abc import Sequence
from typing import Any, Protocol, get_args, runtime_checkable

import pandas as pd
import torch

from tl_subvalues.importance.candidates import Candidates
from tl_subvalues.importance.search import rank, require_top
from tl_subvalues.labels import Component, Unit, labels_of, parse_label
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.targets import Measure
from tl_subvalues.show.tables import compare_table

# Units that are few enough to be compared whole.
_FEW = ("sublayer", "head")


@runtime_checkable
class Compared(Protocol):
    """What of a trace a comparison needs."""

    @property
    def model(self) -> Any:
        """The model."""
        ...

    @property
    def measure(self) -> Measure:
        """What its increases are of."""
        ...

    @property
    def str_tokens(self) -> list[str]:
        """The prompt's."""
        ...

    def candidates(self, unit: Unit) -> Candidates:
        """All components of a unit."""
        ...


@no_autocast_no_grad
def compare(traces: Sequence[Compared], unit: Any, top: Any) -> pd.DataFrame:
    """Increases of a unit's components in two traces, those first that differ most.

    Raises:
        ValueError: for what is no trace, traces of two models or of two measures, an unknown unit, and a `top` that is
            no number.
        UnsupportedModelError: as the table of the unit.
    """
    one, other = traces
    if not isinstance(other, Compared):
        raise ValueError(f"compare takes another trace, as tlsv.trace gives it, got {type(other).__name__}.")
    if unit not in get_args(Unit):
        raise ValueError(f"unit is one of {', '.join(map(repr, get_args(Unit)))}, got {unit!r}.")
    if one.model is not other.model:
        raise ValueError(
            "the traces are of two models, whose components are not the same ones; compare two traces of one model."
        )
    if one.measure != other.measure:
        raise ValueError(
            f"the traces measure two things, {one.measure} and {other.measure}, whose nats do not compare; give both "
            "targets an against, or none."
        )
    limit = None if unit in _FEW else require_top(top)
    many = [trace.candidates(unit) for trace in traces]
    labels = list(dict.fromkeys(label for candidates in many for label in _top(candidates, limit)))
    components = [parse_label(label) for label in labels]
    increases = [_increases(candidates, components) for candidates in many]
    return compare_table(unit, labels, increases, [trace.str_tokens for trace in traces])


def _top(candidates: Candidates, top: int | None) -> list[str]:
    """Labels of the highest components, or of all."""
    ranked, parts = rank(candidates, top=top), candidates.parts
    fields = {name: values.tolist() for name, values in parts.fields(ranked.group, ranked.index).items()}
    if "expert" in fields:
        fields["expert"] = [None if expert < 0 else expert for expert in fields["expert"]]
    return labels_of(parts.unit, {**fields, "sublayer": parts.sublayers(ranked.group)})


def _increases(candidates: Candidates, components: Sequence[Component]) -> list[float | None]:
    """Exact increases of components; None of those that are not there."""
    numbers = [_number(candidates, component) for component in components]
    found = iter(candidates.evaluate(torch.tensor([n for n in numbers if n is not None], dtype=torch.long)).tolist())
    return [None if number is None else next(found) for number in numbers]


def _number(candidates: Candidates, component: Component) -> int | None:
    """Which of the candidates a component is; None where it is not in their run (an idle expert, a later position)."""
    places = [(site.layer, site.sublayer) for site in candidates.parts.sites]
    try:
        group = places.index((component.layer, component.sublayer))
        index = candidates.parts.parts[group].index(component)
    except ValueError:
        return None
    return int(candidates.numbering.starts[group]) + index
