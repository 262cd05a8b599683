"""Rankings as pandas tables, with the labels and columns that each kind of part has."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from tl_subvalues.importance.curve import Curve
from tl_subvalues.labels import Unit, labels_in, labels_of, parse_label, require_different
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.activation import ActivationScores
from tl_subvalues.upstream.effects import Effects
from tl_subvalues.upstream.query import QueryScores

COLUMNS: dict[Unit, list[str]] = {
    "sublayer": ["layer", "sublayer"],
    "head": ["layer", "head"],
    "head_position": ["layer", "head", "position", "token"],
    "attn_neuron": ["layer", "head", "dim", "position", "token", "coefficient"],
    "ffn_neuron": ["layer", "expert", "neuron", "coefficient"],
}

_NO_COLUMNS = ("total", "direct", "at", "place", "expert")
_DTYPES: dict[str, Any] = {
    **dict.fromkeys(("layer", "head", "dim", "position", "expert", "neuron"), np.int64),
    **dict.fromkeys(("sublayer", "token"), object),
    "coefficient": np.float64,
}


def ranked_table(
    unit: Unit,
    fields: Mapping[str, Tensor],
    sublayers: Sequence[str],
    increases: Mapping[str, Tensor],
    tokens: Sequence[str],
) -> pd.DataFrame:
    """One row a part, in the order of a ranking: its label, the columns of its unit, its increases.

    Where some layers have mixtures of experts, FFN neurons have a column `expert`, missing (<NA>) in dense layers.

    Args:
        unit: kind of part.
        fields: layer, head, position and so on of each row; `expert` is −1 in a dense layer.
        sublayers: of each row.
        increases: a column for each.
        tokens: the prompt's, for rows that have a source position.
    """
    columns: dict[str, np.ndarray] = {
        name: fields[name].numpy().astype(_DTYPES[name]) if name in fields else np.empty(len(sublayers), dtype=object)
        for name in COLUMNS[unit]
        if name != "expert" or name in fields
    }
    if "sublayer" in columns:
        columns["sublayer"][:] = sublayers
    if "token" in columns:
        columns["token"][:] = np.array([*tokens, ""], dtype=object)[columns["position"]]
    numbers = {name: column.tolist() for name, column in columns.items()}
    if "expert" in numbers:
        numbers["expert"] = [None if expert < 0 else expert for expert in numbers["expert"]]
    table = pd.DataFrame({"label": labels_of(unit, numbers), **columns})
    if "expert" in columns:
        table["expert"] = table["expert"].astype("Int64").where(table["expert"] >= 0)
    for name, values in increases.items():
        table[name] = values.numpy()
    return table


def activation_table(label: str, by: str, scores: ActivationScores) -> pd.DataFrame:
    """One row a component, first what drove the neuron most: highest scores of a positive sum, lowest of a negative."""
    columns = {name: values.numpy() for name, values in scores.columns.items()}
    table = pd.DataFrame({"label": scores.labels, **columns})
    negative = bool(table["score"].sum() < 0)
    table = table.sort_values("score", ascending=negative, kind="stable", ignore_index=True)
    table.attrs = {"neuron": label, "by": by, "sums_to": scores.sums_to, "position": scores.position}
    return table


def effect_table(effects: Effects, tokens: Sequence[str], sinks: Collection[int]) -> pd.DataFrame:
    """One row a component at a position: label, what tells it apart, coefficient, direct and total effect, sink.

    `position` is where a component is added to the residual stream; of a head at a source position and of its neurons
    it is what they read, and `destination` where they add. Bias terms are summed over all positions.
    """
    rows, unit = effects.rows, effects.unit
    if unit == "embedding":
        at = rows["at"].tolist()
        labels = [name if p < 0 else f"{name}@{p}" for name, p in zip(effects.names, at, strict=True)]
        position = pd.Series(at, dtype="Int64")
        columns: dict[str, Any] = {"position": position.where(position >= 0)}
        read = at
    else:
        numbers = {name: values.tolist() for name, values in rows.items() if name not in ("total", "direct")}
        if "expert" in numbers:
            numbers["expert"] = [None if expert < 0 else expert for expert in numbers["expert"]]
        labels = labels_of(unit, {**numbers, "sublayer": effects.names})
        columns = {"sublayer": effects.names, **{name: rows[name].numpy() for name in rows if name not in _NO_COLUMNS}}
        if "expert" in numbers:
            columns["expert"] = pd.array(numbers["expert"], dtype="Int64")
        read = numbers.get("position", numbers["at"])
        columns["position"] = read
        if "position" in numbers:
            columns["destination"] = numbers["at"]
    own = ["layer"] if unit == "embedding" else COLUMNS[unit]
    shown = [name for name in dict.fromkeys([*own, "position", "destination"]) if name in columns]
    table = pd.DataFrame({"label": labels, **{name: columns[name] for name in shown if name != "coefficient"}})
    table["token"] = [tokens[p] if p >= 0 else "" for p in read]
    if "coefficient" in columns:
        table["coefficient"] = columns["coefficient"].astype(np.float64)
    table["direct_effect"], table["total_effect"] = rows["direct"].double().numpy(), rows["total"].double().numpy()
    table["sink"] = [p in sinks for p in read]
    table.attrs = {"score": effects.score, "direct_left_out": effects.score - float(table["direct_effect"].sum())}
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


def compare_table(
    unit: Unit, labels: Sequence[str], increases: Sequence[Sequence[float | None]], tokens: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """One row a component, with its increases in two traces; those first that differ most, last what one has not.

    Of what reads a source position, `token` and `token_other` are what stands there in either prompt.

    Args:
        unit: kind of component.
        labels: of the components.
        increases: of each in the two traces; None where it is not there.
        tokens: of the two prompts.
    """
    components = [parse_label(label) for label in labels]
    table = pd.DataFrame({"label": pd.Series(labels, dtype=object)})
    for name in [name for name in COLUMNS[unit] if name not in ("coefficient", "token")]:
        values = [getattr(component, name) for component in components]
        if name != "expert" or any(value is not None for value in values):
            table[name] = pd.Series(values, dtype="Int64" if name == "expert" else _DTYPES[name])
    if "token" in COLUMNS[unit]:
        for name, prompt in zip(("token", "token_other"), tokens, strict=True):
            read = [prompt[position] if position < len(prompt) else pd.NA for position in table["position"]]
            table[name] = pd.Series(read, dtype=object)
    for name, found in zip(("increase", "increase_other"), increases, strict=True):
        table[name] = pd.Series(found, dtype=np.float64)
    table["difference"] = table["increase"] - table["increase_other"]
    order = table["difference"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    table = table.loc[order].reset_index(drop=True)
    table.attrs = {"unit": unit}
    return table


def curve_table(curves: Sequence[tuple[Target, Curve]]) -> pd.DataFrame:
    """One row a step: what each of the targets is there, over the same components."""
    labels = curves[0][1].labels
    columns: dict[str, Any] = {"step": np.arange(len(labels)), "label": labels}
    for target, curve in curves:
        columns |= {name: values.numpy() for name, values in target.report(curve.measured.cpu().double()).items()}
    first = ["step", "label", "prob", "log_prob"]
    return pd.DataFrame(columns)[[*first, *(name for name in columns if name not in first)]]


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


def value_neurons_in(values: Any, column: str) -> tuple[list[str], list[float]]:
    """Labels and increases of value neurons.

    Args:
        values: a table of `ffn_neurons` or `attn_neurons`.
        column: what its increases are called.

    Raises:
        ValueError: unless it is such a table, with finite increases.
    """
    if not isinstance(values, pd.DataFrame) or not {"label", column} <= set(values.columns):
        raise ValueError("values is a table of trace.ffn_neurons() or trace.attn_neurons(), with label and increase.")
    labels = labels_in(values)
    require_different(labels)
    increases = pd.to_numeric(values[column], errors="coerce").astype(float)
    if not np.isfinite(increases).all():
        raise ValueError(f"values holds a {column} that is NaN, infinite or no number; drop those rows.")
    return labels, increases.tolist()
