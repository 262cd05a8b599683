"""A saved trace as plain text in columns."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from tl_subvalues.show.visible import plain, visible

if TYPE_CHECKING:
    from tl_subvalues.saved.opened import SavedTrace

_WORDS = 5
_TITLES = {
    "layers": "Sublayers that raise it most",
    "heads": "Attention heads",
    "head_positions": "Attention heads at one source position",
    "ffn_neurons": "FFN neurons",
    "attn_neurons": "Attention neurons at one source position",
}
_HEADINGS = {
    "label": ("label", None),
    "token": ("reads", None),
    "coefficient": ("coefficient", "{:+.2f}"),
    "log_prob_increase": ("Δ log p", "{:+.3f}"),
    "log_prob_diff_increase": ("Δ difference", "{:+.3f}"),
    "prob_increase": ("Δ p", "{:+.2e}"),
}


def to_text(saved: "SavedTrace", top: int) -> str:
    """Prompt, prediction and the top of each table, with the words that each row writes in this run."""
    sections = [_headline(saved)]
    for name, title in _TITLES.items():
        if name in saved.document["tables"]:
            sections.append(f"{title}\n{_shown(saved, _best(saved, name, top)).to_string(index=False)}")
    return "\n\n".join([*sections, *map(plain, saved.document["notes"])]) + "\n"


def _best(saved: "SavedTrace", name: str, top: int) -> pd.DataFrame:
    table = saved.table(name)
    if name == "layers":
        column = next(column for column in table if str(column).endswith("_increase"))
        table = table.sort_values(column, ascending=False, kind="stable")
    return table.head(top)


def _shown(saved: "SavedTrace", table: pd.DataFrame) -> pd.DataFrame:
    shown = {}
    for name, (heading, form) in _HEADINGS.items():
        if name in table:
            values = table[name]
            shown[heading] = [visible(str(value)) if form is None else form.format(float(value)) for value in values]
    effects = saved.document["total_effects"]
    if all(label in effects for label in table["label"]):
        shown["total effect"] = [f"{float(effects[label]):+.3f}" for label in table["label"]]
    signs = table["coefficient"] if "coefficient" in table else [1.0] * len(table)
    reading = next(iter(saved.document["words"]), "cosine")
    pairs = zip(table["label"], signs, strict=True)
    shown[f"writes ({reading})"] = [_writes(saved, label, sign) for label, sign in pairs]
    return pd.DataFrame(shown)


def _writes(saved: "SavedTrace", label: str, sign: float) -> str:
    reading: dict[str, Any] = next(iter(saved.document["words"].values()), {})
    if label not in reading:
        return ""
    return " ".join(map(visible, reading[label]["bottom" if sign < 0 else "top"]["texts"][:_WORDS]))


def _headline(saved: "SavedTrace") -> str:
    positions = "  ".join(f"{i}:{visible(token)}" for i, token in enumerate(saved.str_tokens))
    target = " or ".join(map(visible, saved.target_tokens))
    diff = "" if saved.log_prob_diff is None else f", {saved.log_prob_diff:+.3f} nats over what it is measured against"
    return (
        f"{plain(saved.model_name)}: {target}\npositions  {positions}\n"
        f"log p = {saved.log_prob:.3f}, p = {saved.prob:.1%}, rank {saved.rank}{diff}, read at position "
        f"{saved.position} ({saved.scale} scale)"
    )
