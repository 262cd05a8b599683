"""A trace as a report: what was asked, what came out, and the top of each table; as JSON.

Everything that is shown is in `Report`, so that terminal, plain text and JSON cannot differ.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tl_subvalues.command.shown import Shown, headline, plain
from tl_subvalues.decomposition.components import coefficients_of
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import parse_label
from tl_subvalues.show.plots import SUBLAYERS
from tl_subvalues.tracing.trace import Trace
from tl_subvalues.upstream.chosen import total_effects

# Raised whenever a key is renamed, removed or changes its meaning; new keys may come without it.
SCHEMA = "tl-subvalues/trace/1"
_LEGEND = (
    "{increase}: what adding a part does at once; total: its effect through all later layers; "
    "two questions, so that their orders differ"
)
_INCREASES = {"log_prob": "Δ log p", "log_prob_diff": "Δ diff."}
_WORDS = 5  # tokens shown beside each row
_VALUES = 300  # value neurons that query neurons are asked for, as in the paper


@dataclass(frozen=True)
class Report(Shown):
    """What was asked, what came out, and the top of each table with the words that each row writes."""

    attn_total: float  # sum of the attention sublayers' increases, in nats
    ffn_total: float
    totals: dict[str, float]  # of every kind of sublayer, "attn", "mlp" and mixers

    @property
    def summary(self) -> str:
        """What the kinds of sublayers add together, attention first and FFN last."""
        order = sorted(self.totals, key=lambda kind: (kind == "mlp", kind != "attn"))
        sums = [f"{SUBLAYERS.get(kind, (kind,))[0]} sublayers {self.totals[kind]:+.2f} nats" for kind in order]
        return f"together: {', '.join(sums)}"


def make_report(
    trace: Trace,
    *,
    model: str,
    top: int = 10,
    chosen: bool = False,
    warnings: Sequence[str] = (),
    show_progress: bool = False,
) -> Report:
    """The top of every table of a trace.

    Words of a row, all in this run's sign: `writes` by cosine, `raises` those whose probability it raises most here,
    `promotes` and `suppresses` by bs-value.

    Args:
        trace: what is reported.
        model: what the user calls it.
        top: rows of each table.
        chosen: whether the target is the model's own choice.
        warnings: what was said on the way.
        show_progress: show how far the searches are.
    """
    column = trace.target.column
    layers = trace.layers()
    sums = {str(kind): float(sum_) for kind, sum_ in layers.groupby("sublayer")[column].sum().items()}
    best = layers.sort_values(column, ascending=False, kind="stable", ignore_index=True)
    notes: list[str] = []
    tables = {"layers": best.head(top)}
    for name in ("heads", "head_positions", "ffn_neurons", "attn_neurons"):
        try:
            tables[name] = getattr(trace, name)(top, show_progress=show_progress)
        except UnsupportedModelError as error:
            notes.append(str(error))
    tables = {name: _with_words(trace, table) for name, table in tables.items() if len(table)}
    try:
        if "ffn_neurons" in tables:
            tables |= _switched_on(trace, tables["ffn_neurons"]["label"].iloc[0], top, show_progress)
            left_out = tables["query_ffn_neurons"].attrs["left_out"]
            if left_out:
                notes.append(
                    f"Left out of the query scores, for what they read adds up to nothing: {', '.join(left_out)}"
                )
        else:
            notes.append("No FFN neurons: the model has none.")
    except UnsupportedModelError as error:
        notes.append(str(error))
    tables, legend = _with_effects(trace, tables, notes)
    return Report(
        **headline(trace, model, chosen, warnings),
        tables=tables,
        legend=legend,
        notes=notes,
        attn_total=sums.get("attn", 0.0),
        ffn_total=sums.get("mlp", 0.0),
        totals=sums,
    )


def to_json(report: Report) -> str:
    """The report as JSON, numbers unrounded; `schema` names its version."""
    tables = {
        name: {"rows": table.to_dict(orient="records"), "certificate": None, **table.attrs}
        for name, table in report.tables.items()
    }
    fields = {name: value for name, value in vars(report).items() if name != "tables"}
    return json.dumps({"schema": SCHEMA, **fields, **tables}, ensure_ascii=False, indent=1, default=plain) + "\n"


def _with_effects(
    trace: Trace, tables: dict[str, pd.DataFrame], notes: list[str]
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The tables of components with their total effects, and what those are; or as they were, and why in the notes."""
    of_run = {name: table["label"].tolist() for name, table in tables.items() if name != "activations"}
    labels = sorted({label for own in of_run.values() for label in own})
    try:
        effects = total_effects(trace.run, trace.tokens, trace.target, list(map(parse_label, labels)))
    except UnsupportedModelError as error:
        notes.append(f"No total effects, for: {error}")
        return tables, []
    by_label = dict(zip(labels, effects, strict=True))
    full = dict(tables)
    for name, own in of_run.items():
        full[name] = tables[name].assign(total_effect=[by_label[label] for label in own])
        full[name].attrs = dict(tables[name].attrs)
    return full, [_LEGEND.format(increase=_INCREASES[trace.measure])]


def _switched_on(trace: Trace, first: str, top: int, show_progress: bool) -> dict[str, pd.DataFrame]:
    """What switched on the first FFN neuron, by heads at a source position, and the top value neurons together."""
    scores = trace.activations(first, by="head_position")
    shown = scores.head(top).copy()
    whole = float(scores["score"].sum())
    shown["share"] = shown["score"] / whole if whole else 0.0
    positions = [None if "@" not in label else int(label.split("@")[1]) for label in shown["label"]]
    shown["token"] = ["" if p is None else trace.str_tokens[p] for p in positions]
    values = trace.ffn_neurons(_VALUES, show_progress=show_progress)
    query = trace.query_ffn_neurons(values, top=top)
    query.attrs["values"] = len(values)
    query["coefficient"] = coefficients_of(trace.run, query["label"].tolist())
    return {"activations": shown, "query_ffn_neurons": _with_words(trace, query)}


def _with_words(trace: Trace, table: pd.DataFrame) -> pd.DataFrame:
    promotes: list[list[dict[str, Any]]] = []
    suppresses: list[list[dict[str, Any]]] = []
    signs = table["coefficient"] if "coefficient" in table else pd.Series(1.0, index=table.index)
    words = trace.vocabulary(table["label"].tolist(), _WORDS) if len(table) else pd.DataFrame()
    rows = len(words) // max(1, len(table))  # fewer than 2 * _WORDS where the vocabulary is smaller
    for i, sign in enumerate(signs):
        own = words[rows * i : rows * (i + 1)]
        sides = [
            own.loc[own["side"] == side, ["token", "token_id", "bs_value"]].to_dict(orient="records")
            for side in ("top", "bottom")
        ]
        promotes.append(sides[0] if sign >= 0 else sides[1])
        suppresses.append(sides[1] if sign >= 0 else sides[0])
    result = trace.with_words(table.assign(promotes=promotes, suppresses=suppresses), _WORDS)
    result["raises"] = _raised(trace, table["label"].tolist())
    result.attrs = dict(table.attrs)
    return result


def _raised(trace: Trace, labels: list[str]) -> list[list[str]]:
    """The words whose probability each part raises most where it is added; none of a part that adds nothing."""
    words = trace.writes(labels, _WORDS, by="prob_increase")
    by_label = {str(label): own.tolist() for label, own in words.groupby("label", sort=False)["token"]}
    return [by_label.get(label, []) for label in labels]
