"""Effects through the rest of the model as a report: as tables, as JSON, as CSV."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tl_subvalues.command.shown import Shown, headline, plain
from tl_subvalues.labels import NAMES
from tl_subvalues.tracing.trace import Trace

# As of a trace's JSON: raised whenever a key is renamed, removed or changes its meaning.
SCHEMA = "tl-subvalues/effects/1"
_WORDS = 5  # tokens shown beside each row
_RULES = {
    "gradient": "predicts what taking that one part out does; it adds up to nothing",
    "frozen": "patterns, norms' scales and gates held: what the output consists of",
    "half": "as frozen, with half of a gated neuron's effect through its gate: what the output consists of",
}
_SINK = (
    "sink: what is added at an attention sink does far more or less than predicted, or the opposite; ablate it to know"
)


@dataclass(frozen=True)
class EffectsReport(Shown):
    """What was asked, what came out, and the parts with the largest effects."""

    unit: str
    rule: str
    positions: str
    score: float  # what all direct effects add up to, in nats
    direct_left_out: float  # of it, what the rows that are shown lack

    @property
    def summary(self) -> str:
        """What all direct effects add up to, and how much of it is shown."""
        return f"all direct effects add up to {self.score:+.2f} nats, these to {self.score - self.direct_left_out:+.2f}"


def make_effects_report(
    trace: Trace,
    *,
    model: str,
    unit: Any,
    rule: Any,
    positions: Any,
    top: int | None,
    chosen: bool,
    warnings: Sequence[str],
) -> EffectsReport:
    """The strongest effects of a trace; arguments as `Trace.effects` and `make_report`."""
    words = None if unit == "embedding" else _WORDS
    table = trace.effects(unit, rule=rule, positions=positions, top=top, words=words)
    score, left_out = float(table.attrs["score"]), float(table.attrs["direct_left_out"])
    table.attrs = {"unit": NAMES.get(unit, "embeddings and bias terms"), "rule": rule}
    legend = [
        "direct: read off at the trace's own position at once; total: led through all later layers, in nats",
        f"rule {rule}: {_RULES[rule]}",
    ]
    return EffectsReport(
        **headline(trace, model, chosen, warnings),
        tables={"effects": table},
        legend=[*legend, _SINK] if table["sink"].any() else legend,
        notes=[],
        unit=unit,
        rule=rule,
        positions=positions,
        score=score,
        direct_left_out=left_out,
    )


def effects_json(report: EffectsReport) -> str:
    """The report as JSON, numbers unrounded; `schema` names its version."""
    table = report.tables["effects"].astype(object)
    rows = table.where(table.notna(), None).to_dict(orient="records")
    fields = {name: value for name, value in vars(report).items() if name != "tables"}
    made = {"schema": SCHEMA, **fields, "rows": rows}
    return json.dumps(made, ensure_ascii=False, indent=1, default=plain) + "\n"


def rows_of(report: EffectsReport) -> pd.DataFrame:
    """The table for a file, without the words."""
    return report.tables["effects"].drop(columns="writes", errors="ignore")
