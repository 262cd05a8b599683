"""docs/models.md, put together from the measurements in docs/models/*.json; see make_models.py."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER, PAGE = HERE / "models", HERE / "models.md"
GROUPS = {
    "dense": "Dense decoders",
    "mixtures": "Mixtures of experts",
    "hybrids": "Hybrids",
    "refused": "Refused",
    "hooked": "HookedTransformer",
}
SHORT = {
    "raw": "raw",
    "from a folder": "from a folder",
    "compatibility mode": "compat.",
    "HookedTransformer": "HookedTransformer",
}
# Above these, relative and in nats, nothing is called exact; the most that was seen is 5e-7 and 2e-5.
SUMS, NATS = 1e-5, 1e-4
# Where a bridge's log-probs are further than this from Hugging Face's model, the page says so.
OTHER_MODEL = 1e-3
INTRODUCTION = """\
# Models

What is exact, what is refused, and what fails before anything is decomposed: measured on a tiny random model of each
architecture (two layers or so, width 32, every parameter random, in float32 on a CPU), for each release of
TransformerLens and each way of loading: a `TransformerBridge` raw, one in compatibility mode, a `HookedTransformer`
made by hand or, on 2.18, of a folder in Hugging Face's layout (`tlsv.load_model`).

* **exact: a, b, c** are the worst errors that were seen, to one digit.
  *a*: heads, heads at source positions, attention neurons and FFN neurons, each stack with its bias, are summed and
  compared with `hook_attn_out` and `hook_mlp_out`, in every layer at every position; relative to the output's largest
  entry.
  *b*: the readout of the last residual stream, of every word at every position, against the model's own
  log-probabilities; in nats.
  *c*: the activation scores of one FFN neuron and one attention neuron of the last layer, those with the largest
  coefficients, are summed and compared with the pre-activation, coefficient or value that the model computed; relative
  to it.
  "Exact" is said where a and c are below {sums} and b is below {nats}; around 1e-7, errors are the rounding of float32.
* **refused**: `tlsv.trace` raises a `tlsv.UnsupportedModelError`, whose message begins as the remark does. Where only
  some parts of an exact model are refused, they stand under "parts refused".
* **fails in the host**: TransformerLens, or transformers, raises an error itself when it boots the model, puts it into
  compatibility mode or runs it.
* **not converted**: TransformerLens 2 makes no `HookedTransformer` of such a folder (it may of a published model on its
  own list), and `tlsv.load_model` says so. What it converts wrongly is refused. Nothing stands where the transformers
  of that release lacks the architecture.
* Exact means exact to what TransformerLens computes. Where that is not what the Hugging Face model computes, the remark
  says how far their log-probabilities are apart, and a trace warns. (Differences below {off} nats are taken for
  rounding.)

[Baevski & Auli's model](baevski18.md) has a page of its own. `make models` measures everything again, in an environment
for each release, and writes this page; the numbers are in [models/](models).
"""


def measurements() -> dict[str, Any]:
    """Release -> what its JSON file holds, newest release first."""
    files = sorted(FOLDER.glob("*.json"), key=lambda path: [int(n) for n in path.stem.split(".")], reverse=True)
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def page() -> str:
    """The whole page."""
    found = measurements()
    versions = [
        f"TransformerLens {release}: transformers {of['versions']['transformers']}, torch {of['versions']['torch']}."
        for release, of in found.items()
    ]
    parts = [
        INTRODUCTION.format(sums=number(SUMS), nats=number(NATS), off=OTHER_MODEL)
        + "\nMeasured with "
        + " ".join(versions)
    ]
    for group, title in GROUPS.items():
        parts += [f"## {title}", table({release: of["groups"].get(group, {}) for release, of in found.items()})]
    return "\n\n".join(parts) + "\n"


def table(found: dict[str, dict[str, Any]]) -> str:
    """One row for each family, one column for each release and mode in which there are any."""
    columns = [
        (release, mode)
        for release, members in found.items()
        for mode in SHORT
        if any(mode in member for member in members.values())
    ]
    minor = {release: ".".join(release.split(".")[:2]) for release in found}
    titles = {(release, mode): f"{minor[release]} {SHORT[mode]}" for release, mode in columns}
    rows = [["family", *titles.values(), "parts refused", "remarks"]]
    rows.append(["---"] * len(rows[0]))
    for name in sorted({name for members in found.values() for name in members}):
        cases = {titles[c]: found[c[0]][name][c[1]] for c in columns if c[1] in found[c[0]].get(name, {})}
        what = next(members[name]["model"] for members in found.values() if name in members)
        cells = [cell(cases[title]) if title in cases else "" for title in titles.values()]
        rows.append([f"{name} (`{what}`)", *cells, *remarks(cases)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(case: dict[str, Any]) -> str:
    """A status, with the errors of what is exact."""
    if "sums" not in case:
        return {"host fails": "fails in the host"}.get(case["status"], case["status"])
    return f"{case['status']}: " + ", ".join(number(case.get(key)) for key in ("sums", "readout", "scores"))


def number(error: float | None) -> str:
    """One significant digit: 3e-7."""
    return "–" if error is None else f"{error:.0e}".replace("e-0", "e-")


def remarks(cases: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The last two cells of a row: parts refused; reasons, and differences from Hugging Face. Each with its columns."""
    parts: dict[str, list[str]] = {}
    said: dict[str, list[str]] = {}
    for title, case in cases.items():
        for part, reason in case.get("parts_refused", {}).items():
            parts.setdefault(part, []).append(title)
            said.setdefault(reason, []).append(title)
        if "reason" in case and case["status"] != "not converted":
            said.setdefault(case["reason"], []).append(title)
        if "off_hugging_face" in case:
            said.setdefault(f"log-probs off Hugging Face's by {case['off_hugging_face']:.1g} nats", []).append(title)
    partly = [where(part, titles, cases) for part, titles in parts.items()]
    return ", ".join(partly), "; ".join(where(text, titles, cases) for text, titles in said.items())


def where(text: str, titles: list[str], cases: dict[str, Any]) -> str:
    """A remark, and the columns that it holds for unless it holds for all."""
    seen = list(dict.fromkeys(titles))
    text = text.replace("|", "\\|").replace("<", "&lt;")
    tried = [case for case in cases.values() if case["status"] != "not converted"]
    return text if len(seen) == len(tried) else f"{text} ({', '.join(seen)})"
