"""What the commands find, neuron and mcp answer, in terms of JSON: a schema's name, the model, versions, and rows."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tl_subvalues.command.shown import VERSIONS, plain
from tl_subvalues.labels import parse_label
from tl_subvalues.model_view import view_of
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.rows.find import find, similar
from tl_subvalues.rows.rows import Rows, RowUnit, row_of
from tl_subvalues.rows.words import row_words
from tl_subvalues.study.neuron_facts import facts_of
from tl_subvalues.tracing.trace import Trace
from tl_subvalues.words.readings import ByRow

Answer = dict[str, Any]

# Words beside each row.
BESIDE = 5


def find_answer(model: Any, name: str, words: Any, *, unit: RowUnit, top: int, by: ByRow, largest: bool) -> Answer:
    """Rows that write words, each with the first words of that side of it. `name` is what the user calls the model."""
    table = find(model, words, unit=unit, top=top, by=by, largest=largest)
    side = "top" if largest else "bottom"
    rows, labels = Rows(view_of(model), unit), table["label"].tolist()
    beside = [found[side] for found in row_words(rows, labels, BESIDE, by)]
    settings = {"words": words, "unit": unit, "by": by, "side": side, "searched": table.attrs["searched"]}
    return _answer("find", model, name, settings, rows=_records(table.assign(words=beside)))


def neuron_answer(
    model: Any,
    name: str,
    label: str,
    *,
    k: int,
    top: int,
    by: ByRow,
    facts: Any = None,
    of_fact: int = 300,
    bos: bool | None = None,
    show_progress: bool = False,
) -> Answer:
    """A neuron's card: the words of its row both ways, rows like it with theirs, and the facts that have it on top."""
    component = parse_label(label)
    k = whole_number(k, "words")
    rows, _ = row_of(view_of(model), label)
    alike = similar(model, label, top=top)
    own, *others = row_words(rows, [label, *alike["label"]], max(k, BESIDE), by)
    alike["words"] = [{side: words[:BESIDE] for side, words in found.items()} for found in others]
    content: Answer = {side: words[:k] for side, words in own.items()}
    content["similar"] = _records(alike)
    if facts is not None:
        found = facts_of(model, facts, label, top=of_fact, prepend_bos=bos, show_progress=show_progress)
        content |= {"facts": _records(found), "facts_traced": found.attrs["facts"], "facts_top": of_fact}
    places = ("layer", "expert", "neuron", "head", "dim")
    place = {key: value for key in places if (value := getattr(component, key)) is not None}
    return _answer("neuron", model, name, {"label": label, **place, "by": by}, **content)


def effects_answer(trace: Trace, name: str, *, unit: Any, top: int, rule: Any) -> Answer:
    """Total effects with the words of each row."""
    table = trace.effects(unit, top=top, rule=rule, words=None if unit == "embedding" else BESIDE)
    settings = {**_asked(trace), "unit": unit, "rule": rule, **table.attrs}
    return _answer("effects", trace.model, name, settings, rows=_records(table))


def ablate_answer(trace: Trace, name: str, *, labels: Sequence[str], factor: float, position: int | None) -> Answer:
    """The target before and after components are multiplied with a factor."""
    found = trace.ablate(labels, mode=factor, position=position)
    settings = {**_asked(trace), "labels": list(labels), "factor": factor, "at": position}
    return _answer("ablate", trace.model, name, settings, **found.to_dict())


def to_json(answer: Answer) -> str:
    """An answer as JSON, numbers unrounded."""
    return json.dumps(answer, ensure_ascii=False, indent=1, default=plain) + "\n"


def _answer(what: str, model: Any, name: str, settings: Mapping[str, Any], **content: Any) -> Answer:
    return {
        "schema": f"tl-subvalues/{what}/1",
        "model": name,
        "dtype": str(view_of(model).dtype).removeprefix("torch."),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
        **settings,
        **content,
    }


def _asked(trace: Trace) -> Answer:
    return {
        "tokens": trace.str_tokens,
        "token_ids": trace.tokens.tolist(),
        "position": trace.position,
        "target_tokens": trace.target_tokens,
        "target_ids": trace.target_ids,
        "against_tokens": trace.against_tokens,
        "against_ids": trace.against_ids,
        "measure": trace.measure,
        "log_prob": trace.log_prob,
        "prob": trace.prob,
        "rank": trace.rank,
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in record.items()} for record in table.to_dict(orient="records")]
