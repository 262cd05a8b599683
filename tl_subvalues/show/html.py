"""A document as HTML: a page in one file, and a summary without scripts.

What a document holds is text of others. In the page it is JSON that a module turns into text nodes; in the summary it
is escaped. The page's policy lets it load nothing, from nowhere, and run the one script that it was made with.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from tl_subvalues.show.visible import plain, visible

# In the order of their imports: each file names only what stands before it.
MODULES = ("text", "dom", "parts", "state", "head", "grid", "curve", "tables", "graph", "panel", "page")
_IMPORT = re.compile(r"^import .*;$\n", re.MULTILINE)
_START = """
const place = document.getElementById("trace");
render(place, JSON.parse(document.getElementById("data").textContent), { address: true });
"""
_SUMMARY = 5  # rows of each table in a summary


@cache
def module(*further: str) -> str:
    """The page's modules as one, which exports `render`; with sources that use them, it exports what the last does."""
    sources = [*(_text(f"{name}.js") for name in MODULES), *further]
    own = [_IMPORT.sub("", source) for source in sources]
    inner = [source.replace("\nexport ", "\n") for source in own[:-1]]
    return "\n".join([*inner, own[-1]])


@cache
def style() -> str:
    """The style sheet."""
    return _text("page.css")


def page(document: Mapping[str, Any]) -> str:
    """One file that opens offline."""
    script = module() + _START
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style())}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"{visible(document['target']['texts'][0])} · {plain(document['model']['name'])} · tl-subvalues"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{style()}</style>
</head>
<body>
<main id="trace" class="tlsv">
{summary(document)}
</main>
<script type="application/json" id="data">{embedded(document)}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def embedded(document: Mapping[str, Any]) -> str:
    """JSON that a script element can hold: nothing in it ends the element or starts a comment."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return "".join(escaped.get(c, c) if c.isprintable() else _code(c) for c in text)


def summary(document: Mapping[str, Any]) -> str:
    """Prompt, prediction and the top of the tables, as HTML without scripts, styles or anything to fetch."""
    target, texts = document["target"], document["tokens"]["texts"]
    start = max(0, document["position"] - 40)
    prompt = "".join(texts[start : document["position"] + 1])
    words = " or ".join(_token(text) for text in target["texts"])
    against = target["against"]
    measured = "" if against is None else f", {_number(target['value'])} nats against {_against(against)}"
    head = (
        f"<p>{'…' if start else ''}{_token(prompt)} → <b>{words}</b> p = {100 * float(target['prob']):.1f} %, "
        f"log p = {_number(target['log_prob'])}, rank {target['rank']}{measured} "
        f"({escape(plain(document['model']['name']))})</p>"
    )
    names = {"head_positions": "Heads at a source position", "ffn_neurons": "FFN neurons"}
    tables = [_table(document, name, title) for name, title in names.items() if name in document["tables"]]
    return "\n".join([head, *tables])


def _table(document: Mapping[str, Any], name: str, title: str) -> str:
    columns = {key: column["values"][:_SUMMARY] for key, column in document["tables"][name]["columns"].items()}
    increase = next((key for key in ("log_prob_increase", "log_prob_diff_increase") if key in columns), None)
    if increase is None:
        return ""
    shown = {"part": [escape(visible(label)) for label in columns["label"]]}
    if "token" in columns:
        shown["reads"] = [_token(token or "") for token in columns["token"]]
    signs = columns.get("coefficient", [1.0] * len(columns["label"]))
    if "coefficient" in columns:
        shown["coefficient"] = [_number(value) for value in signs]
    shown["nats"] = [_number(value) for value in columns[increase]]
    shown["writes"] = [_words(document, label, sign) for label, sign in zip(columns["label"], signs, strict=True)]
    heads = "".join(f'<th scope="col">{key}</th>' for key in shown)
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in zip(*shown.values(), strict=True))
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{title}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _words(document: Mapping[str, Any], label: str, sign: Any) -> str:
    """The words that a part writes in this run, by the first reading that there is."""
    by = next((name for name in ("cosine", "bs_value") if name in document["words"]), None)
    found = document["words"].get(by, {}).get(label)
    if found is None:
        return ""
    side = found["bottom" if isinstance(sign, float | int) and sign < 0 else "top"]
    return " ".join(_token(text) for text in side["texts"][:_SUMMARY])


def _against(against: Any) -> str:
    return "all other words" if against == "rest" else " or ".join(_token(text) for text in _texts(against))


def _texts(against: Mapping[str, Any]) -> Iterable[str]:
    texts: list[str] = against["texts"]
    return texts


def _token(text: str) -> str:
    return f"<code>{escape(visible(text))}</code>"


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):+.3f}".replace("-", "−")


def _text(name: str) -> str:
    return files("tl_subvalues.show.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _code(character: str) -> str:
    """A character in JSON's own escapes, as a pair of surrogates where it needs one."""
    return json.dumps(character)[1:-1]
