"""Rankings as pandas tables, with the labels and columns that each kind of part has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tl_subvalues.labels import (
    attn_neuron_label,
    ffn_neuron_label,
    head_label,
    head_position_label,
    sublayer_label,
)

COLUMNS: dict[str, list[str]] = {
    "sublayer": ["layer", "sublayer"],
    "head": ["layer", "head"],
    "head_position": ["layer", "head", "position", "token"],
    "attn_neuron": ["layer", "head", "dim", "position", "token", "coefficient"],
    "ffn_neuron": ["layer", "neuron", "coefficient"],
}

_DTYPES: dict[str, Any] = {
    **dict.fromkeys(("layer", "head", "dim", "position", "neuron"), np.int64),
    **dict.fromkeys(("sublayer", "token"), object),
    "coefficient": np.float64,
}


def ranked_table(
    unit: str,
    sites: Sequence[tuple[int, str]],
    fields: Sequence[Callable[[Any], Mapping[str, Any]]],
    group: np.ndarray,
    index: Any,
    tokens: Sequence[str],
) -> pd.DataFrame:
    """One row a part, in the order of a ranking: its label and the columns of its kind.

    Args:
        unit: kind of part.
        sites: (layer, sublayer) of each group.
        fields: for each group, what gives the columns of its parts from their indices.
        group: group of each row.
        index: index in its group of each row.
        tokens: the prompt's, for rows that have a source position.
    """
    columns: dict[str, np.ndarray] = {name: np.empty(len(group), dtype=_DTYPES[name]) for name in COLUMNS[unit]}
    for number, ((layer, sublayer), fields_of) in enumerate(zip(sites, fields, strict=True)):
        mine = group == number
        for name, values in {"layer": layer, "sublayer": sublayer, **fields_of(index[mine])}.items():
            if name in columns:
                columns[name][mine] = values
    if "token" in columns:
        columns["token"][:] = np.array([*tokens, ""], dtype=object)[columns["position"]]
    return pd.DataFrame({"label": labels(unit, columns), **columns})


def labels(unit: str, parts: dict[str, Any]) -> list[str]:
    """Labels of parts given by their indices, column by column."""
    make: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
        "sublayer": (sublayer_label, ("layer", "sublayer")),
        "head": (head_label, ("layer", "head")),
        "head_position": (head_position_label, ("layer", "head", "position")),
        "attn_neuron": (attn_neuron_label, ("layer", "head", "dim", "position")),
        "ffn_neuron": (ffn_neuron_label, ("layer", "neuron")),
    }
    function, names = make[unit]
    return [function(*row) for row in zip(*(np.asarray(parts[name]).tolist() for name in names), strict=True)]


def vocabulary_table(
    label: str | None, sides: Mapping[str, tuple[Sequence[str], Sequence[int], Sequence[float]]]
) -> pd.DataFrame:
    """Top and bottom tokens of one component: per side its tokens, their ids and bs-values in rank order."""
    first = {} if label is None else {"label": label}
    frames = [
        pd.DataFrame(
            {
                **first,
                "side": side,
                "rank": np.arange(1, len(tokens) + 1),
                "token": list(tokens),
                "token_id": list(ids),
                "bs_value": list(values),
            }
        )
        for side, (tokens, ids, values) in sides.items()
    ]
    return pd.concat(frames, ignore_index=True)
