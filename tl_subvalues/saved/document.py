"""What a finished trace consists of: one JSON document, the same in a file, in a page and in a widget.

    schema        SCHEMA
    versions      of the packages that made it
    model         name, n_layers
    scale         "frozen" or "recomputed"
    tokens        ids, texts: the prompt's
    position      where the target is predicted
    target        ids, texts, against (null, "rest", or ids and texts), measure, value, log_prob, prob, rank
    predictions   table: the most probable next tokens
    tables        of `Trace`: layers, heads, head_positions, attn_neurons, ffn_neurons, effects, curve; and head_grid,
                  the strongest head of every layer and source position
    total_effects by label: through the rest of the model, rule "gradient"
    ablations     by label: the measured effect of taking that part out at the trace's position
    words         by reading and label: top and bottom, each texts, ids, values, sign as stored
    activations   by label and kind of component: tables
    graph         nodes, edges, score, rule; or null
    top           rows of a ranked table, of which there may be more
    notes         what is missing, and why

A table is {"columns": {name: {"dtype", "values"}}, "attrs"}.
"""

import re
from collections.abc import Callable
from typing import Any

from tl_subvalues.saved.packing import DTYPES, head, labels_of_packed, n_rows

# Raised whenever a key is renamed, removed or changes its meaning; new keys may come without it.
SCHEMA = "tl-subvalues/saved-trace/1"
TABLES = ("layers", "heads", "head_positions", "attn_neurons", "ffn_neurons", "effects", "curve", "head_grid")
# Tables that are cut where fewer rows are asked for.
RANKED = ("heads", "head_positions", "attn_neurons", "ffn_neurons", "effects")
INCREASES = ("log_prob_increase", "log_prob_diff_increase")

Document = dict[str, Any]

_WORDS = {"texts": [str], "ids": [int], "values": [float]}
_TABLE = "table"
_SHAPE: dict[str, Any] = {
    "schema": str,
    "versions": {"*": str},
    "model": {"name": str, "n_layers": int},
    "scale": str,
    "tokens": {"ids": [int], "texts": [str]},
    "position": int,
    "target": {
        "ids": [int],
        "texts": [str],
        "against": "against",
        "measure": str,
        "value": float,
        "log_prob": float,
        "prob": float,
        "rank": int,
    },
    "predictions": _TABLE,
    "tables": {"*": _TABLE},
    "total_effects": {"*": float},
    "ablations": {"*": float},
    "words": {"*": {"*": {"top": _WORDS, "bottom": _WORDS}}},
    "activations": {"*": {"*": _TABLE}},
    "graph": "graph",
    "top": int,
    "notes": [str],
}
_GRAPH = {"nodes": _TABLE, "edges": _TABLE, "score": float, "rule": str}
_CERTIFICATE = {"method": str, "candidates": int, "evaluated": int}
_LARGEST = 2**63 - 1
_SURROGATE = re.compile("[\\ud800-\\udfff]")
_SCALES = ("frozen", "recomputed")
# The measure's increases are in each of these.
_INCREASING = ("layers", "heads", "head_positions", "attn_neurons", "ffn_neurons")
# Whole numbers that no row is without, but for a graph's target.
_PLACES = ("layer", "head", "dim", "neuron", "position", "destination", "token_id", "step")
_INFINITE = ("Infinity", "-Infinity")
# What a table has at least.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "predictions": ("token", "token_id", "prob", "log_prob"),
    "layers": ("label", "layer", "sublayer"),
    "heads": ("label", "layer", "head"),
    "head_positions": ("label", "layer", "head", "position", "token"),
    "attn_neurons": ("label", "layer", "head", "dim", "position", "token", "coefficient"),
    "ffn_neurons": ("label", "layer", "neuron", "coefficient"),
    "effects": ("label", "layer", "position", "token", "coefficient", "direct_effect", "total_effect"),
    "curve": ("step", "label", "prob", "log_prob"),
    "head_grid": ("label", "layer", "position", "increase"),
    "nodes": ("label", "kind", "layer", "position", "coefficient", "total_effect", "sink"),
    "edges": ("source", "target", "weight", "through"),
}


def checked(data: Any) -> Document:
    """A document that was read, if it is one: every part of its kind, columns of a table of one length.

    Raises:
        ValueError: saying which part is not.
    """
    if not isinstance(data, dict) or not isinstance(data.get("schema"), str):
        raise ValueError("it is no saved trace: it does not name a schema.")
    if data["schema"] != SCHEMA:
        raise ValueError(f"it is of schema {data['schema'][:80]!r}, this version reads {SCHEMA!r}.")
    _check(data, _SHAPE, "")
    if not 0 <= data["position"] < len(data["tokens"]["texts"]) == len(data["tokens"]["ids"]):
        raise ValueError("its position is not one of its tokens.")
    if not data["target"]["texts"] or len(data["target"]["texts"]) != len(data["target"]["ids"]):
        raise ValueError("its target has no words.")
    for name in ("layers", "heads", "curve"):
        if name not in data["tables"]:
            raise ValueError(f"it has no table {name!r}.")
    _require(data["scale"] in _SCALES, ".scale", "neither 'frozen' nor 'recomputed'")
    target = data["target"]
    measure = "log_prob" if target["against"] is None else "log_prob_diff"
    _require(target["measure"] == measure, ".target.measure", f"not {measure!r}, the measure of such a target")
    for name in set(_INCREASING) & data["tables"].keys():
        column = f"{measure}_increase"
        _require(column in data["tables"][name]["columns"], f".tables.{name}.{column}", "missing")
    return data


def cut(document: Document, top: int, words: int) -> Document:
    """The same with fewer rows and words, for a page."""
    tables = document["tables"]
    tables = {name: shortened(table, top) if name in RANKED else table for name, table in tables.items()}
    kept = {label for table in tables.values() if "label" in table["columns"] for label in labels_of_packed(table)}
    if document["graph"] is not None:
        kept |= set(labels_of_packed(document["graph"]["nodes"]))
    return {
        **document,
        "top": min(top, document["top"]),
        "tables": tables,
        "words": {by: _fewer(one, kept, words) for by, one in document["words"].items()},
        "total_effects": {label: value for label, value in document["total_effects"].items() if label in kept},
    }


def shortened(table: dict[str, Any], top: int) -> dict[str, Any]:
    """The first rows of a ranking, which are the top of a smaller k: certified by the same search."""
    made = head(table, top)
    certificate = table["attrs"].get("certificate")
    column = next((name for name in INCREASES if name in made["columns"]), None)
    if certificate is not None and column is not None and 0 < n_rows(made) < n_rows(table):
        made["attrs"] = {
            **table["attrs"],
            "certificate": {**certificate, "kth_value": made["columns"][column]["values"][-1]},
        }
    return made


def _fewer(words: dict[str, Any], kept: set[str], k: int) -> dict[str, Any]:
    return {
        label: {side: {name: values[:k] for name, values in one.items()} for side, one in sides.items()}
        for label, sides in words.items()
        if label in kept
    }


def _check(value: Any, shape: Any, where: str) -> None:
    """Hold a value against a shape: a type, [of each], {name: of each}, {"*": of all}, or the name of a kind."""
    if isinstance(shape, dict):
        _require(isinstance(value, dict), where, "no object")
        for name in shape if "*" not in shape else value:
            _require(name in value, f"{where}.{name}", "missing")
            _require(_is_text(name), where, "called by no text")
            _check(value[name], shape.get(name, shape.get("*")), f"{where}.{name}")
        if shape is _WORDS:
            _require(
                len({len(list_) for list_ in value.values()}) == 1, where, "words, ids and values of several lengths"
            )
    elif isinstance(shape, list):
        _require(isinstance(value, list), where, "no list")
        each = shape[0]
        if isinstance(each, type):
            _require(_ALL[each](value), where, f"no {each.__name__}")
        else:
            for one in value:
                _check(one, each, where)
    elif shape == "graph":
        if value is not None:
            _check(value, _GRAPH, where)
    elif shape == "against":
        if value is not None and value != "rest":
            _check(value, {"ids": [int], "texts": [str]}, where)
    elif shape == _TABLE:
        _check_table(value, where)
    else:
        _require(_LEAVES[shape](value), where, f"no {shape.__name__}")


def _check_table(table: Any, where: str) -> None:
    _require(isinstance(table, dict) and isinstance(table.get("columns"), dict), where, "no table")
    _require(isinstance(table.get("attrs"), dict), where, "no table")
    if table["attrs"].get("certificate") is not None:
        _check(table["attrs"]["certificate"], _CERTIFICATE, f"{where}.certificate")
    lengths = set()
    for name, column in table["columns"].items():
        here = f"{where}.{name}"
        _require(isinstance(column, dict) and isinstance(column.get("values"), list), here, "no column")
        dtype = column.get("dtype")
        _require(isinstance(dtype, str) and dtype in DTYPES, here, "a column of no known dtype")
        _require(_is_text(name), where, "a table with a column called by no text")
        _require(all(_CELLS[dtype](value) for value in column["values"]), here, f"a column with what is no {dtype}")
        if name in _PLACES and ".nodes" not in where:
            _require(None not in column["values"], here, "a column with missing numbers")
        lengths.add(len(column["values"]))
    _require(len(lengths) <= 1, where, "a table with columns of several lengths")
    for name in _COLUMNS.get(where.rpartition(".")[2], ("label",)):
        _require(name in table["columns"], f"{where}.{name}", "missing")
    if "label" in table["columns"]:
        _require(all(isinstance(one, str) for one in labels_of_packed(table)), f"{where}.label", "no text")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or _is_int(value) or (isinstance(value, str) and value in _INFINITE)


def _is_text(value: Any) -> bool:
    """Text that can be written down: JSON can spell half a character (a surrogate alone), UTF-8 cannot."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATE.search(value))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_through(value: Any) -> bool:
    """Heads and the shares of an edge that they carried."""
    return isinstance(value, list) and all(
        isinstance(one, dict) and _is_text(one.get("head")) and _is_float(one.get("share")) for one in value
    )


def _or_none(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_one(value)


_LEAVES: dict[type, Callable[[Any], bool]] = {int: _is_int, float: _is_float, str: _is_text}
# The same of a list at once: a trace has a hundred thousand of them.
_ALL: dict[type, Callable[[list[Any]], bool]] = {
    int: lambda values: all(type(value) is int and abs(value) <= _LARGEST for value in values),
    float: lambda values: all(type(value) is float or _is_float(value) for value in values),
    str: lambda values: all(isinstance(value, str) for value in values) and _is_text("".join(values)),
}
_CELLS: dict[str, Callable[[Any], bool]] = {
    "int64": _is_int,
    "Int64": _or_none(_is_int),
    "float32": _or_none(_is_float),
    "float64": _or_none(_is_float),
    "bool": _is_bool,
    "object": _or_none(_is_text),
    "str": _or_none(_is_text),
    "json": _is_through,
}


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise ValueError(f"its part {where.lstrip('.')[:80]!r} is {what}.")
