"""A trace as a document: everything that can be shown and kept of it without its model."""

import importlib.metadata
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import parse_label
from tl_subvalues.model_view import decode_each
from tl_subvalues.progress import step
from tl_subvalues.readout.targets import Target
from tl_subvalues.saved.document import SCHEMA, Document
from tl_subvalues.saved.packing import packed, plain
from tl_subvalues.show.attribution_graph import OTHERS
from tl_subvalues.tracing.prediction import ablate_each
from tl_subvalues.upstream.chosen import total_effects
from tl_subvalues.words.readings import By as ReadBy

if TYPE_CHECKING:
    from tl_subvalues.tracing.trace import Trace

# Readings of `vocabulary` that are kept.
READINGS: tuple[ReadBy, ...] = ("cosine", "bs_value", "prob_increase")
_PACKAGES = ("tl-subvalues", "transformer-lens", "transformers", "torch")
# Tables whose parts are read in words, and have total effects.
_RANKED = ("layers", "heads", "head_positions", "attn_neurons", "ffn_neurons")
_BRIEF = ("head_positions", "ffn_neurons")
_WORDS = 10  # a side and part
_PREDICTIONS = 10
_CLOSE = 10  # neurons of each kind whose activation scores are kept, and parts whose ablation is measured
_SCORES = 40  # rows of activation scores; the rest together
_GRID = 5_000  # heads at source positions, up to which all are computed for the grid


def document_of(trace: "Trace", top: int, *, brief: bool = False) -> Document:
    """What a trace consists of, the top of every table.

    Args:
        trace: with its model.
        top: rows of each table.
        brief: heads at source positions and FFN neurons alone, without what is known of them besides.
    """
    made = Made(trace, top)
    tables = made.tables(brief)
    ranked = [tables[name] for name in _RANKED if name in tables]
    graph = None if brief else made.tried("the graph", trace.graph)
    labels = list(dict.fromkeys(label for table in ranked for label in table["label"]))
    named = [*labels, *_further(tables, graph, labels)]
    close = [] if brief else _close(tables)
    return {
        "schema": SCHEMA,
        "versions": {name: _version(name) for name in _PACKAGES},
        "model": {"name": trace.run.view.name, "n_layers": trace.run.view.n_layers},
        "scale": trace.scale,
        "tokens": {"ids": trace.tokens.tolist(), "texts": trace.str_tokens},
        "position": trace.position,
        "target": _target(trace),
        "predictions": packed(_predictions(trace)),
        "tables": {name: packed(table) for name, table in tables.items()},
        "total_effects": {} if brief else made.total_effects(labels),
        "ablations": {} if brief else made.ablations(close),
        "words": made.words(named),
        "activations": {label: made.activations(label) for label in close if _is_neuron(label)},
        "graph": None if graph is None else {
            "nodes": packed(graph.nodes), "edges": packed(graph.edges), "score": graph.score, "rule": graph.rule
        },
        "top": top,
        "notes": made.notes,
    }  # fmt: skip


class Made:
    """The parts of a document that some models refuse, and why they did."""

    def __init__(self, trace: "Trace", top: int) -> None:
        self._trace, self._top = trace, top
        self.notes: list[str] = []

    def tried(self, what: str, make: Callable[[], Any], otherwise: Any = None) -> Any:
        """What a call gives; where the model does not allow it, its reason goes to the notes."""
        step(what.replace("_", " "))
        try:
            return make()
        except (UnsupportedModelError, ValueError) as error:
            self.notes.append(f"{what}: {error}")
            return otherwise

    def tables(self, brief: bool) -> dict[str, pd.DataFrame]:
        """All tables that the model has."""
        trace, top = self._trace, self._top
        layers = pd.DataFrame() if brief else trace.layers()
        calls: dict[str, Callable[[], pd.DataFrame]] = {
            "heads": trace.heads,
            "head_positions": lambda: trace.head_positions(top),
            "attn_neurons": lambda: trace.attn_neurons(top),
            "ffn_neurons": lambda: trace.ffn_neurons(top),
            "effects": lambda: trace.effects(top=top),
            "head_grid": self._head_grid,
            "curve": lambda: trace.curve(layers),
        }
        wanted = _BRIEF if brief else calls
        found = {name: self.tried(name, calls[name]) for name in wanted}
        known = {name: table for name, table in found.items() if table is not None}
        return known if brief else {"layers": layers, **known}

    def _head_grid(self) -> pd.DataFrame:
        """The head that does most, up or down, of every layer and source position."""
        trace = self._trace
        candidates = trace.candidates("head_position")
        complete = len(candidates) <= _GRID
        heads = trace.head_positions(None if complete else max(self._top, 300))
        column = trace.target.column
        order = heads[column].abs().sort_values(ascending=False, kind="stable").index
        best = heads.loc[order].drop_duplicates(["layer", "position"]).sort_values(["layer", "position"])
        grid = best[["label", "layer", "head", "position", column]].rename(columns={column: "increase"})
        grid.attrs = {"complete": complete}
        return grid.reset_index(drop=True)

    def total_effects(self, labels: list[str]) -> dict[str, float]:
        """By the true gradient, of parts at the trace's position."""
        trace = self._trace
        components = [parse_label(label) for label in labels]

        def make() -> list[float]:
            return total_effects(trace.run, trace.tokens, trace.target, components)

        return dict(zip(labels, self.tried("total effects", make, []), strict=False))

    def ablations(self, labels: list[str]) -> dict[str, float]:
        """What taking out each at the trace's position costs, measured."""
        if not labels:
            return {}
        table = self.tried("measured ablations", lambda: ablate_each(self._trace, self._placed(labels)))
        return {} if table is None else dict(zip(labels, table["measured_effect"].tolist(), strict=True))

    def _placed(self, labels: list[str]) -> list[str]:
        return [_placed_at(label, self._trace.position) for label in labels]

    def words(self, labels: list[str]) -> dict[str, Any]:
        """By reading and label."""
        found = {by: self.tried(f"words by {by}", partial(_words, self._trace, labels, by)) for by in READINGS}
        return {by: words for by, words in found.items() if words is not None}

    def activations(self, label: str) -> dict[str, Any]:
        """By sublayer, and the strongest by head at a source position."""
        call, what = self._trace.activations, f"activation scores of {label}"
        found = {"sublayer": self.tried(what, lambda: call(label))}
        if found["sublayer"] is not None:
            heads = self.tried(what, lambda: call(label, by="head_position"))
            found["head_position"] = None if heads is None else _strongest(heads)
        return {by: packed(table) for by, table in found.items() if table is not None}


def _strongest(scores: pd.DataFrame) -> pd.DataFrame:
    """The largest scores and the bias, in the table's order; all others added up in a row of their own."""
    sizes = scores["score"].abs().where(scores["label"] != "bias", float("inf"))
    kept = scores.index.isin(sizes.nlargest(_SCORES).index)
    rest = scores[~kept]
    if rest.empty:
        return scores
    others = {"label": OTHERS, **{name: rest[name].sum() for name in scores if name != "label"}}
    made = pd.concat([scores[kept], pd.DataFrame([others]).astype(scores.dtypes)], ignore_index=True)
    made.attrs = {**scores.attrs, "others": len(rest)}
    return made


def _close(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The parts that are looked at closely: the first of every ranked table."""
    wanted = ("ffn_neurons", "attn_neurons", "head_positions", "heads")
    return [label for name in wanted if name in tables for label in tables[name]["label"].head(_CLOSE)]


def _further(tables: dict[str, pd.DataFrame], graph: Any, labels: list[str]) -> list[str]:
    """Parts besides those of the tables that words are kept of: the grid's strongest, and neurons elsewhere."""
    grid = tables.get("head_grid")
    found = [] if grid is None else grid.loc[grid["increase"].abs().nlargest(60).index, "label"].tolist()
    if graph is not None:
        found += graph.nodes.loc[graph.nodes["kind"] == "neuron", "label"].tolist()
    if "effects" in tables:
        found += tables["effects"]["label"].tolist()
    return [label for label in dict.fromkeys(found) if label not in set(labels)]


def _words(trace: "Trace", labels: list[str], by: ReadBy) -> dict[str, Any]:
    """The words at the top and the bottom of each part; of a neuron at a position, those of its row.

    What a neuron elsewhere does to a word's probability here is no reading of its row: it has none by that.
    """
    rows = {label: label.rpartition("@")[0] if _is_placed_neuron(label) else label for label in labels}
    if by == "prob_increase":
        rows = {label: row for label, row in rows.items() if label in (row, f"{row}@{trace.position}")}
    if not rows:
        return {}
    table = trace.vocabulary(list(dict.fromkeys(rows.values())), _WORDS, by=by)
    found: dict[str, Any] = {}
    for (row, side), words in table.groupby(["label", "side"], sort=False):
        texts, ids, values = words["token"].tolist(), words["token_id"].tolist(), words[by].tolist()
        found.setdefault(row, {})[side] = {"texts": texts, "ids": ids, "values": plain(values)}
    return {label: found[row] for label, row in rows.items()}


def _is_neuron(label: str) -> bool:
    return parse_label(label).unit in ("ffn_neuron", "attn_neuron")


def _is_placed_neuron(label: str) -> bool:
    component = parse_label(label)
    return component.unit == "ffn_neuron" and component.at is not None


def _placed_at(label: str, position: int) -> str:
    """A part as it is added at a position, unless its label says where."""
    component = parse_label(label)
    if component.at is not None:
        return label
    joint = {"head": "@>", "head_position": ">", "attn_neuron": ">"}.get(component.unit, "@")
    return f"{label}{joint}{position}"


def _target(trace: "Trace") -> dict[str, Any]:
    ids, texts = trace.against_ids, trace.against_tokens
    against = {"ids": ids, "texts": texts} if isinstance(ids, list) else ids
    return plain(
        {
            "ids": trace.target_ids,
            "texts": trace.target_tokens,
            "against": against,
            "measure": trace.measure,
            "value": trace.value,
            "log_prob": trace.log_prob,
            "prob": trace.prob,
            "rank": trace.rank,
        }
    )


@torch.no_grad()
def _predictions(trace: "Trace") -> pd.DataFrame:
    """The most probable next tokens, and the target's words among them wherever they rank."""
    log_probs = trace.readout.log_probs(trace.run.activations.final_residual(trace.position)[0])
    best = torch.topk(log_probs, min(_PREDICTIONS, len(log_probs))).indices.tolist()
    others = trace.against_ids if isinstance(trace.against_ids, list) else []
    ids = list(dict.fromkeys([*best, *trace.target_ids, *others]))
    found = log_probs[ids].double()
    return pd.DataFrame(
        {
            "token": decode_each(trace.run.view, ids),
            "token_id": ids,
            "prob": found.exp().tolist(),
            "log_prob": found.tolist(),
            "rank": [int(Target((token,)).rank(log_probs)) for token in ids],
        }
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
