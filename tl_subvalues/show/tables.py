"""Rankings as pandas tables, with the labels and columns that each kind of part has."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tl_subvalues.importance.curve import Curve
from tl_subvalues.labels import Unit, labels_in, labels_of, parse_label, require_different
from tl_subvalues.upstream.activation import ActivationScores
from tl_subvalues.upstream.query import QueryScores

COLUMNS: dict[Unit, list[str]] = {
    "sublayer": ["layer", "sublayer"],
    "head": ["layer", "head"],
    "head_position": ["layer", "head", "position", "token"],
    "attn_neuron": ["layer", "head", "dim", "position", "token", "coefficient"],
    "ffn_neuron": ["layer", "expert", "neuron", "coefficient"],
}
_NO_EXPERT = -1

_DTYPES: dict[str, Any] = {
    **dict.fromkeys(("layer", "head", "dim", "position", "expert", "neuron"), np.int64),
    **dict.fromkeys(("sublayer", "token"), object),
    "coefficient": np.float64,
}


def ranked_table(
    unit: Unit,
    sites: Sequence[tuple[int, str]],
    fields: Sequence[Callable[[Any], Mapping[str, Any]]],
    group: np.ndarray,
    index: Any,
    tokens: Sequence[str],
) -> pd.DataFrame:
    """One row a part, in the order of a ranking: its label and the columns of its kind.

    Where some layers have mixtures of experts, FFN neurons have a column `expert`, missing (<NA>) in dense layers.

    Args:
        unit: kind of part.
        sites: (layer, sublayer) of each group.
        fields: for each group, what gives the columns of its parts from their indices.
        group: group of each row.
        index: index in its group of each row.
        tokens: the prompt's, for rows that have a source position.
    """
    columns: dict[str, np.ndarray] = {name: np.empty(len(group), dtype=_DTYPES[name]) for name in COLUMNS[unit]}
    experts = False
    for number, ((layer, sublayer), fields_of) in enumerate(zip(sites, fields, strict=True)):
        mine = group == number
        found = {"layer": layer, "sublayer": sublayer, "expert": _NO_EXPERT, **fields_of(index[mine])}
        experts = experts or found["expert"] is not _NO_EXPERT
        for name, values in found.items():
            if name in columns:
                columns[name][mine] = values
    if "token" in columns:
        columns["token"][:] = np.array([*tokens, ""], dtype=object)[columns["position"]]
    numbers = {name: column.tolist() for name, column in columns.items()}
    if "expert" in numbers:
        numbers["expert"] = [None if expert == _NO_EXPERT else expert for expert in numbers["expert"]]
    table = pd.DataFrame({"label": labels_of(unit, numbers), **columns})
    if "expert" not in columns:
        return table
    if not experts:
        return table.drop(columns="expert")
    table["expert"] = table["expert"].astype("Int64").where(table["expert"] != _NO_EXPERT)
    return table


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


def activation_table(label: str, by: str, scores: ActivationScores) -> pd.DataFrame:
    """One row a component, first what drove the neuron most: highest scores of a positive sum, lowest of a negative."""
    columns = {name: values.numpy() for name, values in scores.columns.items()}
    table = pd.DataFrame({"label": scores.labels, **columns})
    negative = bool(table["score"].sum() < 0)
    table = table.sort_values("score", ascending=negative, kind="stable", ignore_index=True)
    table.attrs = {"neuron": label, "by": by, "sums_to": scores.sums_to, "position": scores.position}
    return table


def query_table(unit: Unit, scores: QueryScores, top: int | None, tokens: Sequence[str]) -> pd.DataFrame:
    """One row a component with the columns of its kind, highest query score first."""
    table = pd.DataFrame({"label": scores.labels, "query_score": scores.scores.numpy()})
    table = table.sort_values("query_score", ascending=False, kind="stable", ignore_index=True).head(top or len(table))
    components = [None if label in ("embed", "pos_embed") else parse_label(label) for label in table["label"]]
    mixed = any(component is not None and component.expert is not None for component in components)
    names = [name for name in COLUMNS[unit] if name != "coefficient" and (name != "expert" or mixed)]
    for place, name in enumerate(names, start=1):
        if name == "token":
            values: list[Any] = [tokens[position] for position in table["position"]]
        else:
            values = [None if component is None else getattr(component, name) for component in components]
        dtype = object if _DTYPES[name] is object else "Int64" if None in values else np.int64
        table.insert(place, name, pd.Series(values, dtype=dtype, index=table.index))
    table.attrs = {"left_out": scores.left_out}
    return table


def curve_table(curve: Curve) -> pd.DataFrame:
    """One row a step."""
    log_prob = curve.log_probs.cpu().double().numpy()
    steps = np.arange(len(curve.labels))
    return pd.DataFrame({"step": steps, "label": curve.labels, "prob": np.exp(log_prob), "log_prob": log_prob})


def coefficients_in(table: Any) -> list[float] | None:
    """The coefficients of a table of neurons; None where it has none.

    Raises:
        ValueError: for a table of several prompts.
    """
    if not isinstance(table, pd.DataFrame):
        return None
    if "prompt" in table and table["prompt"].nunique() > 1:
        raise ValueError("the table holds rows of several prompts; pass those of this trace's own.")
    return table["coefficient"].astype(float).tolist() if "coefficient" in table else None


def value_neurons_in(values: Any) -> tuple[list[str], list[float]]:
    """Labels and log-probability increases of value neurons.

    Raises:
        ValueError: unless it is a table of `ffn_neurons` or `attn_neurons` with finite increases.
    """
    if not isinstance(values, pd.DataFrame) or not {"label", "log_prob_increase"} <= set(values.columns):
        raise ValueError("values is a table of trace.ffn_neurons() or trace.attn_neurons(), with label and increase.")
    labels = labels_in(values)
    require_different(labels)
    increases = pd.to_numeric(values["log_prob_increase"], errors="coerce").astype(float)
    if not np.isfinite(increases).all():
        raise ValueError(
            "values holds log-probability increases that are NaN, infinite or no numbers; drop those rows."
        )
    return labels, increases.tolist()
