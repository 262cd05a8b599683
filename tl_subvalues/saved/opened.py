"""A finished trace, opened without its model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from tl_subvalues.errors import shown_value
from tl_subvalues.labels import labels_in
from tl_subvalues.saved import files
from tl_subvalues.saved.document import Document, shortened
from tl_subvalues.saved.graph import SavedGraph
from tl_subvalues.saved.packing import labels_of_packed, n_rows, unpacked
from tl_subvalues.saved.pages import Pages

# Tables whose rows have coefficients.
_OF_NEURONS = ("attn_neurons", "ffn_neurons", "effects")
_NAMED = 6  # labels in a message
# How many rows: a number, all (None), or as many as were saved.
Top = int | None | Literal["saved"]


def open_trace(path: Any) -> "SavedTrace":
    """The trace that `trace.save` wrote: its tables, words, scores and graph, without its model.

    Needs neither torch nor TransformerLens. What was not saved, or needs the model, is refused by saying what is there.

    Args:
        path: a folder or a .zip file.

    Raises:
        ValueError: if it holds no trace, or one that is damaged.
    """
    return SavedTrace(files.read(path))


@dataclass(frozen=True, eq=False)
class SavedTrace(Pages):
    """A trace without its model; made by `open_trace`. Its tables are those of `Trace`, as far as they were saved."""

    document: Document = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"SavedTrace({shown_value(''.join(self.str_tokens))} -> {shown_value(self.target_token)}, "
            f"log_prob={self.log_prob:.3f}, of {shown_value(self.model_name)})"
        )

    @property
    def tokens(self) -> list[int]:
        """The prompt's token ids."""
        return list(self.document["tokens"]["ids"])

    @property
    def str_tokens(self) -> list[str]:
        """The prompt's tokens."""
        return list(self.document["tokens"]["texts"])

    @property
    def position(self) -> int:
        """Where the target is predicted, counted from the front."""
        return int(self.document["position"])

    @property
    def target_ids(self) -> list[int]:
        """Token ids of all the target's words."""
        return list(self.document["target"]["ids"])

    @property
    def target_tokens(self) -> list[str]:
        """The target's words."""
        return list(self.document["target"]["texts"])

    @property
    def target_id(self) -> int:
        """The target's token id, of several the first."""
        return self.target_ids[0]

    @property
    def target_token(self) -> str:
        """The target's text, of several the first."""
        return self.target_tokens[0]

    @property
    def against_ids(self) -> list[int] | Literal["rest"] | None:
        """What the target is measured against: token ids, "rest", or nothing."""
        against = self.document["target"]["against"]
        return list(against["ids"]) if isinstance(against, dict) else against

    @property
    def against_tokens(self) -> list[str] | Literal["rest"] | None:
        """Texts of what the target is measured against, "rest", or nothing."""
        against = self.document["target"]["against"]
        return list(against["texts"]) if isinstance(against, dict) else against

    @property
    def measure(self) -> str:
        """What is measured, in nats: "log_prob" or "log_prob_diff"."""
        return str(self.document["target"]["measure"])

    @property
    def log_prob(self) -> float:
        """Of the target, in nats."""
        return float(self.document["target"]["log_prob"])

    @property
    def prob(self) -> float:
        """Of the target."""
        return float(self.document["target"]["prob"])

    @property
    def rank(self) -> int:
        """Of the target's most probable word among all; 1 is the top."""
        return int(self.document["target"]["rank"])

    @property
    def value(self) -> float:
        """The target's measure, in nats."""
        return float(self.document["target"]["value"])

    @property
    def log_prob_diff(self) -> float | None:
        """log p(target) − log p(against), in nats; None without an `against`."""
        return self.value if self.measure == "log_prob_diff" else None

    @property
    def scale(self) -> str:
        """Of the final norm: "frozen" or "recomputed"."""
        return str(self.document["scale"])

    @property
    def model_name(self) -> str:
        """The model that was traced."""
        return str(self.document["model"]["name"])

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that made it."""
        return dict(self.document["versions"])

    def layers(self, *, words: int | None = None) -> pd.DataFrame:
        """Every sublayer's output, in order of computation; as `Trace.layers`."""
        return self._with_words(self.table("layers"), words)

    def heads(self, top: int | None = None, *, largest: bool = True, words: int | None = None) -> pd.DataFrame:
        """Attention heads; as `Trace.heads`."""
        return self._ranked("heads", top, largest, words)

    def head_positions(self, top: Top = "saved", *, largest: bool = True, words: int | None = None) -> pd.DataFrame:
        """Heads at one source position; as `Trace.head_positions`, as many as were saved."""
        return self._ranked("head_positions", top, largest, words)

    def attn_neurons(self, top: Top = "saved", *, largest: bool = True, words: int | None = None) -> pd.DataFrame:
        """Attention neurons; as `Trace.attn_neurons`, as many as were saved."""
        return self._ranked("attn_neurons", top, largest, words)

    def ffn_neurons(self, top: Top = "saved", *, largest: bool = True, words: int | None = None) -> pd.DataFrame:
        """FFN neurons; as `Trace.ffn_neurons`, as many as were saved."""
        return self._ranked("ffn_neurons", top, largest, words)

    def effects(
        self,
        unit: str = "ffn_neuron",
        *,
        top: Top = "saved",
        positions: str = "all",
        rule: str = "gradient",
        largest: bool | None = None,
        words: int | None = None,
    ) -> pd.DataFrame:
        """Total effects of FFN neurons at all positions, rule "gradient"; as `Trace.effects`, as many as were saved."""
        if (unit, positions, rule, largest) != ("ffn_neuron", "all", "gradient", None):
            raise ValueError(
                "the saved trace holds effects of unit 'ffn_neuron', positions 'all', rule 'gradient', largest None; "
                "others need the model: call effects on a trace of your own."
            )
        return self._ranked("effects", top, True, words)

    def curve(self, table: Any = None) -> pd.DataFrame:
        """P and log p over all sublayers, in their order; as `Trace.curve` of `layers()`."""
        if table is not None and labels_in(table) != labels_of_packed(self._packed("layers")):
            raise ValueError("the saved trace holds the curve of layers() alone; others need the model.")
        return self.table("curve")

    def vocabulary(
        self, label: str | list[str], k: int = 10, *, by: str = "bs_value", through: str | None = None
    ) -> pd.DataFrame:
        """The words at the top and the bottom of a component, sign as stored; as `Trace.vocabulary`."""
        if through is not None:
            raise ValueError("through= needs the model, which a saved trace is without; read a trace of your own.")
        words = self._words(by)
        labels = labels_in(label)
        self._require_saved(labels, words, "words", "vocabulary")
        rows = []
        for one in labels:
            for side in ("top", "bottom"):
                found = words[one][side]
                if require_k(k) > len(found["ids"]):
                    raise ValueError(f"the saved trace holds {len(found['ids'])} words a side, {k} were asked for.")
                named = {"label": one} if not isinstance(label, str) else {}
                parts = zip(found["texts"], found["ids"], found["values"], strict=True)
                for rank, (token, token_id, value) in enumerate(parts, start=1):
                    if rank <= k:
                        word = {"side": side, "rank": rank, "token": token, "token_id": token_id, by: float(value)}
                        rows.append({**named, **word})
        return pd.DataFrame(rows)

    def writes(self, labels: Any, k: int = 5, *, by: str = "cosine") -> pd.DataFrame:
        """The words that components write in this run, neurons' rows times their coefficients; as `Trace.writes`."""
        words, coefficients, named = self._words(by), self._coefficients(), labels_in(labels)
        self._require_saved(named, words, "words", "writes")
        rows: list[dict[str, Any]] = []
        for label in named:
            times = 1.0 if by == "prob_increase" else coefficients.get(label, 1.0)
            if times == 0.0:
                continue  # it adds nothing here
            found = words[label]["top" if times > 0 else "bottom"]
            if require_k(k) > len(found["ids"]):
                raise ValueError(f"the saved trace holds {len(found['ids'])} words a side, {k} were asked for.")
            factor = math.copysign(1.0, times) if by == "cosine" else times
            parts = zip(found["texts"][:k], found["ids"], found["values"], strict=False)
            for rank, (token, token_id, value) in enumerate(parts, start=1):
                word = {"rank": rank, "token": token, "token_id": token_id, by: factor * float(value)}
                rows.append({"label": label, **word})
        return pd.DataFrame(rows, columns=["label", "rank", "token", "token_id", by])

    def _coefficients(self) -> dict[str, float]:
        """Of the neurons of all tables, by label."""
        packed = [self.document["tables"][name] for name in _OF_NEURONS if name in self.document["tables"]]
        if self.document["graph"] is not None:
            packed.append(self.document["graph"]["nodes"])
        return {
            label: float(value)
            for table in packed
            for label, value in zip(labels_of_packed(table), table["columns"]["coefficient"]["values"], strict=True)
            if value is not None
        }

    def activations(self, label: str, by: str = "sublayer") -> pd.DataFrame:
        """What switched a neuron on; as `Trace.activations`, of the neurons at the top of the tables.

        By "head_position", the strongest rows by themselves and all others together as the row `others`.
        """
        saved = self.document["activations"]
        self._require_saved([label], saved, "activation scores", "activations")
        if by not in saved[label]:
            kinds = " and ".join(map(repr, saved[label]))
            raise ValueError(f"the saved trace holds activation scores by {kinds}, not by {by!r}.")
        return unpacked(saved[label][by])

    def graph(self, *, nodes: int = 64, edges: float = 0.98, rule: str = "frozen") -> SavedGraph:
        """What fed the output; as `Trace.graph` with its own defaults."""
        saved = self.document["graph"]
        if saved is None:
            raise ValueError(f"the saved trace holds no graph: {'; '.join(self.document['notes']) or 'none was made'}.")
        if (nodes, edges, rule) != (64, 0.98, saved["rule"]):
            raise ValueError(
                f"the saved trace holds the graph of 64 nodes, edges 0.98, rule {saved['rule']!r}; "
                "others need the model."
            )
        return SavedGraph(
            unpacked(saved["nodes"]), unpacked(saved["edges"]), float(saved["score"]), saved["rule"], self.document
        )

    def table(self, name: str) -> pd.DataFrame:
        """A table as it was saved, whole.

        Raises:
            ValueError: if there is none of that name.
        """
        return unpacked(self._packed(name))

    def _document(self, top: int) -> Document:
        return self.document

    def _words(self, by: str) -> dict[str, Any]:
        saved = self.document["words"]
        if by not in saved:
            kinds = ", ".join(map(repr, saved)) or "none"
            raise ValueError(f"the saved trace holds words by {kinds}, not by {by!r}.")
        return dict(saved[by])

    def _packed(self, name: str) -> dict[str, Any]:
        if name not in self.document["tables"]:
            why = "; ".join(self.document["notes"]) or "the model has none"
            raise ValueError(f"the saved trace holds no table {name!r}: {why}.")
        return dict(self.document["tables"][name])

    def _with_words(self, table: pd.DataFrame, words: int | None) -> pd.DataFrame:
        """A table with the words of each row as a column `writes`, where they are asked for."""
        if words is not None:
            labels = table["label"].tolist()
            self._require_saved(labels, self._words("cosine"), "words", "writes")
            found = self.writes(labels, require_k(words))
            tokens = dict.fromkeys(labels, ()) | found.groupby("label", sort=False)["token"].agg(tuple).to_dict()
            table["writes"] = [list(tokens[label]) for label in labels]
        return table

    def _ranked(self, name: str, top: Top, largest: bool, words: int | None = None) -> pd.DataFrame:
        top = self._n_saved(name) if top == "saved" else top
        return self._with_words(self._shortened(name, top, largest), words)

    def _n_saved(self, name: str) -> int | None:
        """As many rows as there are; None for a table without any."""
        return n_rows(self._packed(name)) or None

    def _shortened(self, name: str, top: int | None, largest: bool) -> pd.DataFrame:
        table = self._packed(name)
        saved, certificate = n_rows(table), table["attrs"].get("certificate")
        complete = saved < self.document["top"] or (certificate is not None and saved == certificate["candidates"])
        if not largest or (not complete and (top is None or top > saved)):
            wanted = "the lowest were" if not largest else f"{'all' if top is None else top} were"
            raise ValueError(
                f"the saved trace holds the top {saved:,} of {name}, {wanted} asked for; others need the model "
                "(trace.save(path, top=...) keeps more)."
            )
        return unpacked(table if top is None else shortened(table, require_k(top)))

    def _require_saved(self, labels: list[str], saved: dict[str, Any], what: str, call: str) -> None:
        missing = next((label for label in labels if label not in saved), None)
        if missing is not None:
            first = ", ".join(list(saved)[:_NAMED])
            raise ValueError(
                f"the saved trace holds {what} of {len(saved)} parts ({first}, …), not of {shown_value(missing)}: that "
                f"needs the model, call {call} on a trace of your own."
            )


def require_k(k: int) -> int:
    """A positive number.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"a positive number is needed, got {k!r}.")
    return k


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: SavedTrace, *_: Any, **__: Any) -> Any:
        raise ValueError(
            f"{name} needs the model, which a saved trace is without; it holds layers, heads, head_positions, "
            "attn_neurons, ffn_neurons, effects, curve, vocabulary, writes, activations, graph and its page (to_html)."
        )

    refuse.__name__, refuse.__doc__ = name, f"Refused: `Trace.{name}` needs the model."
    return refuse


# What a trace with its model can do besides.
for _name in (
    "ablate",
    "ablate_each",
    "compare",
    "query_layers",
    "query_heads",
    "query_head_positions",
    "query_ffn_neurons",
    "plot_layers",
    "plot_heads",
    "plot_neurons",
    "plot_curve",
    "plot_compare",
    "plot_activations",
    "widget",
):
    setattr(SavedTrace, _name, _refused(_name))
