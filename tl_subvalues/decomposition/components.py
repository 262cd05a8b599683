"""The vectors behind labels: what a named component adds in one run, and the direction that it writes along."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.parts import Parts
from tl_subvalues.decomposition.run import Run
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import Component, parse_label
from tl_subvalues.model_view import check_values


def component_of(run: Run, label: str) -> Component:
    """The component that a label names, which the run's model has.

    Raises:
        ValueError: if the label is none, or the model has no such component.
        UnsupportedModelError: if the sublayer has no such parts.
    """
    component = parse_label(label)
    with _naming(label):
        run.view.layer(component.layer).require(component)
        if component.at is not None and not component.at < run.n_positions:
            raise ValueError(f"position {component.at} is not below {run.n_positions}")
    return component


def subvalues_of(run: Run, labels: Sequence[str]) -> Float[Tensor, "label d_model"]:
    """What each component adds to the residual stream in this run.

    Raises:
        ValueError: if there is no such component.
    """
    found: list[Tensor] = [torch.empty(0)] * len(labels)
    for parts, index, numbers in _gathered(run, labels):
        for number, vector in zip(numbers, parts.subvalues.vectors(index.to(run.view.device)), strict=True):
            found[number] = vector
    return torch.stack(found)


def written(run: Run, label: str) -> Float[Tensor, " d_model"]:
    """The direction that a component writes along: a neuron's row of W_out or W_O, sign as stored, or an output.

    Raises:
        ValueError: if there is no such component.
    """
    component = component_of(run, label)
    run = run if component.at is None else run.at(component.at)
    with _naming(label):
        parts = run.parts(run.site(component.layer, component.sublayer), component.unit)
        return parts.written(component, run.view.device)


def coefficients_of(run: Run, labels: Sequence[str]) -> list[float]:
    """Coefficients of neurons at the run's position.

    Raises:
        ValueError: if one is no neuron, or there is none of that name.
    """
    found = [0.0] * len(labels)
    for parts, index, numbers in _gathered(run, labels):
        if parts.coefficients is None:
            raise ValueError(f"{labels[numbers[0]]!r} is no neuron, so it has no coefficient.")
        for number, value in zip(
            numbers, parts.coefficients[index.to(parts.coefficients.device)].tolist(), strict=True
        ):
            found[number] = value
    return found


def require_own(run: Run, labels: Sequence[str], coefficients: Sequence[float] | None) -> None:
    """Raise if the coefficients that a table gives are not this run's: it is of another prompt or position.

    Raises:
        ValueError: naming the first that differs.
    """
    if coefficients is None:
        return
    for label, own, given in zip(labels, coefficients_of(run, labels), coefficients, strict=True):
        if abs(own - given) > 1e-3 * abs(own) + 1e-6:
            raise ValueError(
                f"the table is of another trace: {label!r} has the coefficient {given:.4g} there, {own:.4g} here."
            )


def through_head(run: Run, source_label: str, label: str) -> Float[Tensor, " d_model"]:
    """What a component makes a later head write: its direction behind the head's norm, W_V, W_O and what follows.

    The component is taken as it is at the label's source position, or at the run's position where it names none; so is
    the norm's scale. The head's attention weight is left out, and so is the index of an attention neuron.

    Raises:
        ValueError: if the label names no head, or one that does not read the component.
        UnsupportedModelError: if the head's value weights cannot be read.
    """
    component, fed = component_of(run, label), component_of(run, source_label)
    if component.head is None:
        raise ValueError(
            f"through= names a head or one of its neurons, such as 'L23H4' or 'L23H4D38@3', got {label!r}."
        )
    attention = run.view.layer(component.layer).attention()
    if not any((s.layer, s.sublayer) == (fed.layer, fed.sublayer) for s in run.read_by(component.layer, "attn")):
        raise ValueError(f"{label!r} does not read {source_label!r}, which comes after it or beside it.")
    source = run.position if component.position is None else component.position
    if source >= run.n_sources(component.layer):
        raise ValueError(
            f"{label!r} is not in this trace: no head reads position {source} from position {run.position}."
        )
    check_values(run.view, component.layer, run.activations, source)
    assert attention.W_V is not None
    vector = written(run.at(source), source_label)  # as it stands where the head reads it
    x = run.at(source).read(component.layer, "attn")
    read = vector if attention.norm is None else attention.norm.linear(vector, attention.norm.scale(x))
    W_V = attention.W_V[attention.kv_head(torch.tensor(component.head))].to(read)
    scale = run.activations.post_scale(component.layer, "attn", run.position)
    made = read @ W_V @ attention.W_O[component.head].to(read)
    return attention.passage.carry(made, None if scale is None else scale[0])


def _gathered(run: Run, labels: Sequence[str]) -> Iterator[tuple[Parts, Int[Tensor, " n"], list[int]]]:
    """Labels gathered by sublayer and unit: the parts, which of them are named, and the numbers of their labels."""
    groups: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    components = [component_of(run, label) for label in labels]
    for label, component in zip(labels, components, strict=True):
        if component.at not in (None, run.position):
            raise ValueError(f"{label!r} is added at another position than this trace's, which is {run.position}.")
    for number, component in enumerate(components):
        groups[component.layer, component.sublayer, component.unit].append(number)
    for numbers in groups.values():
        first = components[numbers[0]]
        parts = run.parts(run.site(first.layer, first.sublayer), first.unit)
        index = []
        for number in numbers:
            with _naming(labels[number]):
                index.append(parts.index(components[number]))
        yield parts, torch.tensor(index), numbers


@contextmanager
def _naming(label: str) -> Iterator[None]:
    """Put a label in front of what is wrong with it."""
    try:
        yield
    except UnsupportedModelError:
        raise
    except ValueError as error:
        raise ValueError(f"{label!r} is not in this trace: {str(error).rstrip('.')}.") from error
