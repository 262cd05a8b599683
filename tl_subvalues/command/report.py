"""A trace as a report: the sections that the command prints, and the same as JSON.

Everything that is shown is in `Report`, so that terminal, plain text and JSON cannot differ.
"""

import json
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tl_subvalues.decomposition.components import coefficients_of
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import decode_text
from tl_subvalues.tracing.trace import Trace

# Raised whenever a key is renamed, removed or changes its meaning; new keys may come without it.
SCHEMA = "tl-subvalues/trace/1"
_WORDS = 5  # tokens shown beside each row
_VALUES = 300  # value neurons that query neurons are asked for, as in the paper

_TITLES = {
    "layers": "Sublayers that raise the log-probability most",
    "heads": "Attention heads",
    "head_positions": "Attention heads at one source position",
    "ffn_neurons": "FFN neurons",
    "attn_neurons": "Attention neurons at one source position",
    "activations": "What switched {first} on (score; all scores add up to its {sums_to})",
    "query_ffn_neurons": "Query neurons: what switched the top {values} FFN neurons on",
}
_HEADINGS = {
    "label": "label",
    "token": "reads",
    "coefficient": "coefficient",
    "log_prob_increase": "Δ log p",
    "prob_increase": "Δ p",
    "score": "score",
    "share": "share",
    "query_score": "query score",
    "promotes": "writes",
}
_FORMS = {
    "coefficient": "{:+.2f}",
    "Δ log p": "{:+.3f}",
    "Δ p": "{:+.2e}",
    "score": "{:+.3f}",
    "share": "{:+.1%}",
    "query score": "{:+.3f}",
}


@dataclass(frozen=True)
class Report:
    """What was asked, what came out, and the top of each table with the words that each row writes."""

    model: str
    prompt: str
    scale: str
    tokens: list[str]
    position: int
    target: str
    target_id: int
    log_prob: float
    prob: float
    rank: int
    attn_total: float  # sum of the attention sublayers' increases, in nats
    ffn_total: float
    tables: dict[str, pd.DataFrame]
    notes: list[str]  # why a table is missing


def make_report(trace: Trace, *, model: str, top: int = 10, show_progress: bool = False) -> Report:
    """The top of every table of a trace.

    `promotes` and `suppresses` are the words that a row writes in this run: a neuron's by the sign of its coefficient.
    """
    layers = trace.layers()
    sums = layers.groupby("sublayer")["log_prob_increase"].sum()
    best = layers.sort_values("log_prob_increase", ascending=False, kind="stable", ignore_index=True)
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
    return Report(
        model=model,
        prompt=decode_text(trace.run.view, trace.tokens.tolist()),
        scale=trace.scale,
        tokens=trace.str_tokens,
        position=trace.position,
        target=trace.target_token,
        target_id=trace.target_id,
        log_prob=trace.log_prob,
        prob=trace.prob,
        rank=trace.rank,
        attn_total=float(sums.get("attn", 0.0)),
        ffn_total=float(sums.get("mlp", 0.0)),
        tables=tables,
        notes=notes,
    )


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


def to_json(report: Report) -> str:
    """The report as JSON, numbers unrounded; `schema` names its version."""
    tables = {
        name: {"rows": table.to_dict(orient="records"), "certificate": None, **table.attrs}
        for name, table in report.tables.items()
    }
    fields = {name: value for name, value in vars(report).items() if name != "tables"}
    return json.dumps({"schema": SCHEMA, **fields, **tables}, ensure_ascii=False, indent=1, default=_plain) + "\n"


def to_text(report: Report) -> str:
    """The report as plain text in columns, for a pipe or a file."""
    sections = [_headline(report)]
    for name, table in report.tables.items():
        sections.append(f"{_title(name, table)}\n{_shown(table).to_string(index=False)}")
    sections += report.notes
    return "\n\n".join(sections) + "\n"


def print_rich(report: Report, console: Console) -> None:
    """The report as tables on a terminal."""
    console.print(Text(_headline(report)))
    for name, table in report.tables.items():
        drawn = Table(title=f"\n{_title(name, table)}", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        shown = _shown(table)
        for column in shown.columns:
            numeric = column in _FORMS
            drawn.add_column(column, justify="right" if numeric else "left", no_wrap=column != "writes")
        for row in shown.itertuples(index=False):
            drawn.add_row(*(Text(str(cell)) for cell in row))
        console.print(drawn)
    for note in report.notes:
        console.print(Text(note))


def render(report: Report, console: Console) -> str:
    """What `print_rich` would print, as text (for tests and saved transcripts)."""
    recorder = Console(file=StringIO(), width=console.width, force_terminal=False)
    print_rich(report, recorder)
    file = recorder.file
    assert isinstance(file, StringIO)
    return file.getvalue()


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


def _headline(report: Report) -> str:
    positions = "  ".join(f"{i}:{token!r}" for i, token in enumerate(report.tokens))
    return (
        f"{report.model}: {report.prompt!r} -> {report.target!r}\n"
        f"positions  {positions}\n"
        f"log p = {report.log_prob:.3f}, p = {report.prob:.1%}, rank {report.rank}, read at position {report.position} "
        f"({report.scale} scale)\n"
        f"attention sublayers together {report.attn_total:+.2f} nats, FFN sublayers {report.ffn_total:+.2f} nats"
    )


def _title(name: str, table: pd.DataFrame) -> str:
    attrs = table.attrs
    return _TITLES[name].format(first=attrs.get("neuron"), sums_to=attrs.get("sums_to"), values=attrs.get("values"))


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that are printed, rounded."""
    shown = {heading: table[name] for name, heading in _HEADINGS.items() if name in table}
    if "promotes" in table:
        shown["writes"] = [" ".join(repr(word["token"]) for word in words) for words in table["promotes"]]
    for heading, form in _FORMS.items():
        if heading in shown:
            shown[heading] = shown[heading].map(form.format)
    if "reads" in shown:
        shown["reads"] = [repr(token) if token else "" for token in shown["reads"]]
    return pd.DataFrame(shown)


def _plain(value: Any) -> Any:
    """Numpy numbers as Python's; a dense layer's missing expert as null."""
    return None if value is pd.NA else value.item()
