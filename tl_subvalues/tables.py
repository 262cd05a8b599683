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


def increase_table(unit: str, parts: dict[str, Any], increase: np.ndarray, prob_increase: np.ndarray) -> pd.DataFrame:
    """One row a part: label, the columns of its kind, and the two increases (nats; probability)."""
    columns = {name: parts[name] for name in COLUMNS[unit]}
    return pd.DataFrame(
        {"label": labels(unit, parts), **columns, "log_prob_increase": increase, "prob_increase": prob_increase}
    )


def empty_table(unit: str) -> pd.DataFrame:
    """The table of a model that has no such parts."""
    none = np.zeros(0, dtype=np.float32)
    return increase_table(unit, dict.fromkeys(COLUMNS[unit], none), none, none)


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
