"""What a component is called: `24_mlp_out`, `L23H4`, `L23H4@3`, `L23H4D38@3`, `L23H4D38`, `L24N1005`, `L3E5N10`.

The labels are TransformerLens's where it has one (`ActivationCache.decompose_resid`, `stack_head_results`,
`stack_neuron_results`), extended by a source position (`@3`), an index inside a head (`D38`) and an expert (`E5`).
An attention neuron without a source position is that index of the head whatever it reads.
A layer's shared expert is counted after its routed ones: `L3E8N10` where there are eight of those.

Where components of several positions stand side by side, a label also says where it is added to the residual stream:
`L11N1229@0`, `24_mlp_out@4`; of a head, after what it reads: `L11H2@1>3` and `L11H2D7@1>3`, or `L11H2@>3` for all.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

Unit = Literal["sublayer", "head", "head_position", "attn_neuron", "ffn_neuron"]
Sublayer = Literal["attn", "mlp", "conv", "linear_attn", "mamba", "mixer", "ssm"]
# What stands in attention's place in a hybrid model, by the names that TransformerLens gives it.
MIXERS: tuple[Sublayer, ...] = ("conv", "linear_attn", "mamba", "mixer", "ssm")
# The sublayer that each unit is a part of; a whole sublayer is a part of none.
PART_OF: Mapping[Unit, Sublayer | None] = {
    "sublayer": None,
    "head": "attn",
    "head_position": "attn",
    "attn_neuron": "attn",
    "ffn_neuron": "mlp",
}

# What the components of each unit are called, many at once.
NAMES: Mapping[Unit, str] = {
    "sublayer": "sublayers",
    "head": "attention heads",
    "head_position": "heads at source positions",
    "attn_neuron": "attention neurons",
    "ffn_neuron": "FFN neurons",
}

_AT, _FROM = r"(?:@(?P<at>\d+))?", r"@(?P<position>\d+)(?:>(?P<at>\d+))?"
_PATTERNS: tuple[tuple[Unit, re.Pattern[str]], ...] = (
    ("sublayer", re.compile(rf"(?P<layer>\d+)_(?P<sublayer>attn|mlp|{'|'.join(MIXERS)})_out{_AT}", re.ASCII)),
    ("head", re.compile(r"L(?P<layer>\d+)H(?P<head>\d+)(?:@>(?P<at>\d+))?", re.ASCII)),
    ("head_position", re.compile(rf"L(?P<layer>\d+)H(?P<head>\d+){_FROM}", re.ASCII)),
    ("attn_neuron", re.compile(rf"L(?P<layer>\d+)H(?P<head>\d+)D(?P<dim>\d+)(?:{_FROM})?", re.ASCII)),
    ("ffn_neuron", re.compile(rf"L(?P<layer>\d+)N(?P<neuron>\d+){_AT}", re.ASCII)),
    ("ffn_neuron", re.compile(rf"L(?P<layer>\d+)E(?P<expert>\d+)N(?P<neuron>\d+){_AT}", re.ASCII)),
)


@dataclass(frozen=True)
class Component:
    """One named part of a model's residual stream; the fields that its unit does not have are None."""

    unit: Unit
    layer: int
    sublayer: Sublayer
    head: int | None = None
    dim: int | None = None
    position: int | None = None  # that a head reads from
    neuron: int | None = None
    expert: int | None = None
    at: int | None = None  # where it is added; None: wherever it is asked about


def sublayer_label(layer: int, sublayer: str) -> str:
    """Output of a whole sublayer: `24_attn_out`."""
    return f"{layer}_{sublayer}_out"


def bias_label(layer: int, sublayer: str) -> str:
    """Bias part of a sublayer's output: `24_attn_bias`."""
    return f"{layer}_{sublayer}_bias"


def head_label(layer: int, head: int) -> str:
    """Attention head: `L23H4`."""
    return f"L{layer}H{head}"


def head_position_label(layer: int, head: int, position: int) -> str:
    """Attention head reading one source position: `L23H4@3`."""
    return f"L{layer}H{head}@{position}"


def attn_neuron_label(layer: int, head: int, dim: int, position: int | None = None) -> str:
    """Attention neuron, one index inside a head at one source position: `L23H4D38@3`; wherever it reads: `L23H4D38`."""
    return f"L{layer}H{head}D{dim}" + ("" if position is None else f"@{position}")


def ffn_neuron_label(layer: int, neuron: int, expert: int | None = None) -> str:
    """FFN neuron: `L24N1005`; of an expert: `L3E5N10`."""
    return f"L{layer}N{neuron}" if expert is None else f"L{layer}E{expert}N{neuron}"


_MAKERS: dict[Unit, tuple[Callable[..., str], tuple[str, ...]]] = {
    "sublayer": (sublayer_label, ("layer", "sublayer")),
    "head": (head_label, ("layer", "head")),
    "head_position": (head_position_label, ("layer", "head", "position")),
    "attn_neuron": (attn_neuron_label, ("layer", "head", "dim", "position")),
    "ffn_neuron": (ffn_neuron_label, ("layer", "neuron", "expert")),
}


_PIECES = {"layer": "L{}", "head": "H{}", "dim": "D{}", "position": "@{}", "neuron": "N{}"}

# What stands between a unit's label and where it is added.
_JOINTS: dict[Unit, str] = {"head": "@>", "head_position": ">", "attn_neuron": ">"}


def labels_of(unit: Unit, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Labels of many components of one unit, given by their layers, heads and so on, column by column.

    FFN neurons may come without a column `expert`, or with None in it. A column `at` says where each is added.
    """
    make, names = _MAKERS[unit]
    given = [name for name in names if name in columns]
    if unit == "sublayer" or "expert" in given or None in columns.get("position", ()):
        labels = [make(*row) for row in zip(*(columns[name] for name in given), strict=True)]
    else:  # the same, without a call of ours for each of a hundred thousand
        form = "".join(_PIECES[name] for name in given)
        labels = [form.format(*row) for row in zip(*(columns[name] for name in given), strict=True)]
    if "at" not in columns:
        return labels
    joint = _JOINTS.get(unit, "@")
    return [f"{label}{joint}{at}" for label, at in zip(labels, columns["at"], strict=True)]


# Rows of tables that are no components.
_NO_PART = re.compile(r"(embed|pos_embed|bias|others)(@\d+)?|\d+_\w+_bias")


def parse_label(label: str) -> Component:
    """The component that a label names.

    Raises:
        ValueError: if the text is no label, with the forms that there are.
    """
    for unit, pattern in _PATTERNS:
        match = pattern.fullmatch(label) if isinstance(label, str) else None
        if match:
            fields = match.groupdict()
            sublayer = fields.pop("sublayer", PART_OF[unit] or "attn")
            numbers = {name: int(value) for name, value in fields.items() if value is not None}
            return Component(unit, sublayer=cast(Sublayer, sublayer), **numbers)
    if isinstance(label, str) and _NO_PART.fullmatch(label):
        raise ValueError(
            f"{label!r} stands in tables for an embedding or a bias term, or for all others, and is no subvalue; "
            "name one, as 'L24N1005' or 'L23H4@3'."
        )
    raise ValueError(
        f"{label!r} is not a label; labels look like '24_attn_out' or '24_mlp_out' (sublayer), 'L23H4' (head), "
        "'L23H4@3' (head at a source position), 'L23H4D38@3' (attention neuron; 'L23H4D38' at all source positions), "
        "'L24N1005' (FFN neuron), 'L3E5N10' (FFN neuron of an expert); at one position, 'L24N1005@4', 'L23H4@3>4'."
    )


def labels_in(given: Any) -> list[str]:
    """The labels of a table (its column `label`) or of a list, in order; a label by itself is a list of one.

    Raises:
        ValueError: for a table without labels, for no labels at all, and for what is neither table nor list.
    """
    if isinstance(given, str):
        return [given]
    if hasattr(given, "columns"):
        if "label" not in given.columns:
            raise ValueError(f"the table has no column 'label', only {', '.join(map(repr, given.columns))}.")
        given = given["label"]
    if not isinstance(given, Iterable):
        raise ValueError(f"a table with a column 'label' or a list of labels is needed, got {type(given).__name__}.")
    labels = list(given)
    if not labels:
        raise ValueError("no labels: a table with no rows, or an empty list; name a component, such as 'L24N1005'.")
    return labels


def require_different(labels: Sequence[str]) -> None:
    """Raise if a label is there twice, where each component counts once.

    Raises:
        ValueError: naming it.
    """
    twice = next((label for label, times in Counter(labels).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"the table holds {twice!r} more than once.")
