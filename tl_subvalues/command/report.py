"""A trace as a report: what was asked, what came out, and the top of each table; as JSON.

Everything that is shown is in `Report`, so that terminal, plain text and JSON cannot differ.
"""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from tl_subvalues.decomposition.components import coefficients_of
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import decode_text
from tl_subvalues.tracing.trace import Trace

# Raised whenever a key is renamed, removed or changes its meaning; new keys may come without it.
SCHEMA = "tl-subvalues/trace/1"
_WORDS = 5  # tokens shown beside each row
_VALUES = 300  # value neurons that query neurons are asked for, as in the paper
_VERSIONS = ("tl-subvalues", "transformer_lens", "transformers", "torch")


@dataclass(frozen=True)
class Report:
    """What was asked, what came out, and the top of each table with the words that each row writes."""

    model: str
    dtype: str  # of the weights
    versions: dict[str, str]
    prompt: str
    scale: str
    tokens: list[str]
    token_ids: list[int]
    bos: bool  # whether the prompt begins with the model's BOS token
    position: int
    target: str  # its first word
    target_id: int
    target_tokens: list[str]
    target_ids: list[int]
    target_chosen: bool  # by the model, as its most probable next token
    against_tokens: list[str] | Literal["rest"] | None
    against_ids: list[int] | Literal["rest"] | None
    measure: str
    log_prob: float
    prob: float
    log_prob_diff: float | None
    rank: int
    attn_total: float  # sum of the attention sublayers' increases, in nats
    ffn_total: float
    totals: dict[str, float]  # of every kind of sublayer, "attn", "mlp" and mixers
    tables: dict[str, pd.DataFrame]
    notes: list[str]  # why a table is missing, what was left out
    warnings: list[str]


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

    `promotes` and `suppresses` are the words that a row writes in this run: a neuron's by the sign of its coefficient.

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
    tables = {
        "layers": best.head(top),
        "heads": trace.heads(top, show_progress=show_progress),
        "head_positions": trace.head_positions(top, show_progress=show_progress),
        "ffn_neurons": trace.ffn_neurons(top, show_progress=show_progress),
        "attn_neurons": trace.attn_neurons(top, show_progress=show_progress),
    }
    tables = {name: _with_words(trace, table) for name, table in tables.items() if len(table)}
    notes = []
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
    ids = trace.tokens.tolist()
    return Report(
        model=model,
        dtype=str(trace.run.view.dtype).removeprefix("torch."),
        versions={name: importlib.metadata.version(name) for name in _VERSIONS},
        prompt=decode_text(trace.run.view, ids),
        scale=trace.scale,
        tokens=trace.str_tokens,
        token_ids=ids,
        bos=ids[0] == getattr(getattr(trace.model, "tokenizer", None), "bos_token_id", None),
        position=trace.position,
        target=trace.target_token,
        target_id=trace.target_id,
        target_tokens=trace.target_tokens,
        target_ids=trace.target_ids,
        target_chosen=chosen,
        against_tokens=trace.against_tokens,
        against_ids=trace.against_ids,
        measure=trace.measure,
        log_prob=trace.log_prob,
        prob=trace.prob,
        log_prob_diff=trace.log_prob_diff,
        rank=trace.rank,
        attn_total=sums.get("attn", 0.0),
        ffn_total=sums.get("mlp", 0.0),
        totals=sums,
        tables=tables,
        notes=notes,
        warnings=list(warnings),
    )


def to_json(report: Report) -> str:
    """The report as JSON, numbers unrounded; `schema` names its version."""
    tables = {
        name: {"rows": table.to_dict(orient="records"), "certificate": None, **table.attrs}
        for name, table in report.tables.items()
    }
    fields = {name: value for name, value in vars(report).items() if name != "tables"}
    return json.dumps({"schema": SCHEMA, **fields, **tables}, ensure_ascii=False, indent=1, default=_plain) + "\n"


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
    result = table.assign(promotes=promotes, suppresses=suppresses)
    result.attrs = dict(table.attrs)
    return result


def _plain(value: Any) -> Any:
    """Numpy numbers as Python's; a dense layer's missing expert as null."""
    return None if value is pd.NA else value.item()
