"""All rows of one unit, as they enter the residual stream: of W_out in every layer (and expert), or of W_O.

What a run would divide them by is left out: a post-norm's scale is taken as 1, its gain and its centring are not. That
leaves lengths open by a factor that all rows of a sublayer share, and angles not at all.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import Component, parse_label
from tl_subvalues.model_view import Activations, ModelView, check_readout, check_run, prompt_tokens
from tl_subvalues.numerics.norms import Passage
from tl_subvalues.numerics.numbering import Numbering
from tl_subvalues.readout.readout import Readout

RowUnit = Literal["ffn_neuron", "attn_neuron"]

# Rows made at a time: 2,048 rows of 4,096 numbers are 32 MB.
_ROWS = 2048
# What a model is run on to see whether it can be taken apart: tokens that pad or open a text in no tokenizer known.
_PROMPT = (3, 4, 5)


@dataclass(frozen=True)
class Matrix:
    """One matrix of rows: a layer's W_out or W_O, or an expert's W_out."""

    layer: int
    expert: int | None
    shape: tuple[int, ...]  # [neuron], or [head, d_head]

    def __len__(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Span:
    """Neighbouring rows of one matrix."""

    number: int  # of the matrix
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Rows:
    """The rows of one unit of a model, matrix by matrix; weights stay where they are, few rows are made at a time."""

    def __init__(self, view: ModelView, unit: str) -> None:
        """Rows of a unit.

        Raises:
            ValueError: for a unit that has no rows.
            UnsupportedModelError: if a layer has no neurons that can be read, or the model none at all; if its blocks
                do not add what they write to the residual stream that is read out.
        """
        if unit not in get_args(RowUnit):
            raise ValueError(f"unit is 'ffn_neuron' (rows of W_out) or 'attn_neuron' (rows of W_O), got {unit!r}.")
        self.view, self.unit = view, cast(RowUnit, unit)
        require_sums(view)
        self.matrices = tuple(self._found())
        if not self.matrices:
            kind = "FFN" if unit == "ffn_neuron" else "attention"
            raise UnsupportedModelError(f"{view.name} has no {kind} neurons, so there are no rows to read.")
        self.numbering = Numbering(map(len, self.matrices))

    def __len__(self) -> int:
        return len(self.numbering)

    @property
    def has_experts(self) -> bool:
        """Whether some rows are an expert's."""
        return any(matrix.expert is not None for matrix in self.matrices)

    def spans(self, size: int = _ROWS) -> list[Span]:
        """All rows in order, in spans of at most so many."""
        return [
            Span(number, start, min(start + size, len(matrix)))
            for number, matrix in enumerate(self.matrices)
            for start in range(0, len(matrix), size)
        ]

    def vectors(self, spans: Sequence[Span]) -> Iterator[Float[Tensor, "n d_model"]]:
        """The rows of spans, one span after the other; a matrix is looked up once for neighbouring spans."""
        looked_up, found = -1, None
        for span in spans:
            if span.number != looked_up:
                looked_up, found = span.number, self._matrix(self.matrices[span.number])
            assert found is not None
            weights, passage = found
            yield self._carried(weights[span.start : span.stop], passage)

    def chosen(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """Rows by their numbers among all, in any order."""
        number, index = self.numbering.locate(rows.cpu())
        result = torch.empty(0)
        for one in number.unique().tolist():
            weights, passage = self._matrix(self.matrices[one])
            mine = number == one
            made = self._carried(weights[index[mine].to(weights.device)], passage)
            result = result if len(result) else made.new_zeros(len(rows), made.shape[1])
            result[mine.to(made.device)] = made
        return result

    def fields(self, rows: Int[Tensor, " n"]) -> dict[str, list[int | None]]:
        """Layer, and expert, neuron, or head, dim of rows by their numbers among all; `expert` where some have one."""
        number, index = (numbers.tolist() for numbers in self.numbering.locate(rows.cpu()))
        matrices = [self.matrices[one] for one in number]
        found: dict[str, list[int | None]] = {"layer": [matrix.layer for matrix in matrices]}
        if self.unit == "attn_neuron":
            pairs = [divmod(i, matrix.shape[1]) for i, matrix in zip(index, matrices, strict=True)]
            return {**found, "head": [head for head, _ in pairs], "dim": [dim for _, dim in pairs]}
        if self.has_experts:
            found["expert"] = [matrix.expert for matrix in matrices]
        return {**found, "neuron": index}

    def number_of(self, component: Component) -> int:
        """A neuron's number among all rows."""
        for number, matrix in enumerate(self.matrices):
            if (matrix.layer, matrix.expert) == (component.layer, component.expert):
                index = component.neuron
                if index is None:
                    assert component.head is not None
                    assert component.dim is not None
                    index = component.head * matrix.shape[1] + component.dim
                return self.numbering.span(number).start + index
        raise IndexError(component)

    def _found(self) -> Iterator[Matrix]:
        """Every matrix that has rows; what layers lack is said of all at once."""
        refused: dict[int, UnsupportedModelError] = {}
        for layer in self.view.layers:
            try:
                if self.unit == "attn_neuron":
                    if layer.has_attn:
                        yield Matrix(layer.layer, None, tuple(layer.attention().W_O.shape[:2]))
                elif layer.has_ffn:
                    mixture = layer.mixture()
                    if mixture is None:
                        yield Matrix(layer.layer, None, (len(layer.ffn().W_out),))
                    else:
                        sizes = [len(mixture.expert(number).W_out) for number in range(len(mixture))]
                        yield from (Matrix(layer.layer, number, (n,)) for number, n in enumerate(sizes))
            except UnsupportedModelError as error:
                refused[layer.layer] = error
        if refused:
            first, *others = refused
            more = f" The same holds for layers {', '.join(map(str, others))}." if others else ""
            raise UnsupportedModelError(f"{refused[first]}{more}")

    def _matrix(self, matrix: Matrix) -> tuple[Tensor, Passage]:
        layer = self.view.layer(matrix.layer)
        if self.unit == "attn_neuron":
            attention = layer.attention()
            return attention.W_O.flatten(0, 1), attention.passage
        mixture = layer.mixture()
        if mixture is None:
            ffn = layer.ffn()
            return ffn.W_out, ffn.passage
        assert matrix.expert is not None
        return mixture.expert(matrix.expert).W_out, mixture.passage

    def _carried(self, weights: Tensor, passage: Passage) -> Float[Tensor, "n d_model"]:
        rows = weights.to(device=self.view.device, dtype=self.view.compute_dtype)
        return passage.carry(rows, rows.new_ones(1))


def require_sums(view: ModelView) -> None:
    """Raise unless blocks add to one residual stream, and the readout of it is the model's output: a short run shows.

    Raises:
        UnsupportedModelError: naming what does not hold.
    """
    tokens = prompt_tokens(view, [i % view.readout.d_vocab for i in _PROMPT])
    last = len(tokens) - 1
    (logits,), cache = view.run(tokens, [last])
    activations = Activations(view, cache)
    check_run(view, activations, last)
    log_probs = Readout.frozen_at(view, activations, last).log_probs(activations.final_residual(last)[0])
    check_readout(view, log_probs, logits)


def row_of(view: ModelView, label: str) -> tuple[Rows, int]:
    """The rows that a neuron's row is among, and its number there.

    Args:
        view: the model.
        label: of a neuron, such as "L24N1005", "L3E5N10" or "L23H4D38"; positions in it make no difference.

    Raises:
        ValueError: if it is no label, or names no neuron of the model.
        UnsupportedModelError: if there are no rows to read.
    """
    component = parse_label(label)
    if component.unit not in get_args(RowUnit):
        raise ValueError(
            f"{label!r} is no neuron, so it has no row; name one such as 'L24N1005' (FFN) or 'L23H4D38' (attention)."
        )
    rows = Rows(view, component.unit)
    try:
        view.layer(component.layer).require(component)
    except UnsupportedModelError:
        raise
    except ValueError as error:
        raise ValueError(f"{view.name} has no {label!r}: {str(error).rstrip('.')}.") from error
    return rows, rows.number_of(component)
