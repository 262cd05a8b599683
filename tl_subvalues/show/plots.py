"""Pictures of tables, one axes each: takes the numbers as they are in the table, draws them, returns the axes.

Needs matplotlib: pip install 'tl-subvalues[plots]'. Without `ax`, a figure is made.

Colours are Okabe and Ito's, which the colour-blind tell apart and which differ in grey: attention is dark, FFN light.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from tl_subvalues.labels import parse_label

ATTN, FFN, MIXER, OTHER, LINE = "#0072B2", "#E69F00", "#009E73", "#999999", "#D55E00"
SUBLAYERS = {"attn": ("attention", ATTN), "mlp": ("FFN", FFN)}  # names and colours; a mixer goes by its own name
# One style a line, beside its colour: for more lines than there are colours, and for print without any.
_STYLES = [
    *((ATTN, "s", "-"), (FFN, "o", "-"), (LINE, "^", "--"), (OTHER, "v", ":")),
    *((MIXER, "D", "-"), ("#CC79A7", "P", "--"), ("#56B4E9", "X", "-."), ("#000000", "*", ":")),
]
# Columns of increases, and what they are of; where a table has the second, that is what was asked for.
_MEASURES = {"log_prob": "log p", "log_prob_diff": "difference of log p"}
_MOST_TITLE = 40


def axes_or_new(ax: Any) -> Any:
    """The axes given, or a new figure's.

    Raises:
        ImportError: without matplotlib.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'tl-subvalues[plots]'.") from error
    return pyplot.subplots(figsize=(7, 4), layout="constrained")[1]


def title(prompt: str, target: Sequence[str], against: Sequence[str] | Literal["rest"] | None = None) -> str:
    """A prompt, its end only where it is long, its target, and what that is measured against."""
    shown = prompt if len(prompt) <= _MOST_TITLE else f"…{prompt[1 - _MOST_TITLE :]}"
    words = f"{shown!r} → {_words(target)}"
    if against is not None:
        words += " against " + ("the rest" if isinstance(against, str) else _words(against))
    return words.replace("$", r"\$")  # a dollar sign opens mathematics


def layers(table: pd.DataFrame, title: str, ax: Any = None) -> Any:
    """A bar for each sublayer, those of a layer side by side: how much its output raises the target."""
    ax, (column, nats) = axes_or_new(ax), _increase(table)
    kinds = sorted(table["sublayer"].unique(), key=lambda kind: (kind == "mlp", kind != "attn"))
    for number, kind in enumerate(kinds):
        rows, (name, colour) = table[table["sublayer"] == kind], SUBLAYERS.get(kind, (kind, MIXER))
        width = 0.8 / len(kinds)
        shift = (number - (len(kinds) - 1) / 2) * width
        ax.bar(rows["layer"] + shift, rows[column], width=width, color=colour, label=name)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.legend(frameon=False)
    return labelled(ax, "layer", nats, f"Sublayers for {title}")


def heads(table: pd.DataFrame, title: str, ax: Any = None, named: int = 3) -> Any:
    """Heat map of heads by layer; the strongest few carry their labels."""
    ax, (column, nats) = axes_or_new(ax), _increase(table)
    grid = table.pivot(index="layer", columns="head", values=column)
    grid = grid.reindex(range(grid.index.min(), grid.index.max() + 1))  # a layer without attention stays empty
    limit = max(float(np.nanmax(np.abs(grid.to_numpy()))), 1e-12)
    extent = (grid.columns.min() - 0.5, grid.columns.max() + 0.5, grid.index.min() - 0.5, grid.index.max() + 0.5)
    image = ax.imshow(
        grid, cmap="PuOr", vmin=-limit, vmax=limit, origin="lower", aspect="auto", extent=extent, interpolation="none"
    )
    ax.figure.colorbar(image, ax=ax, label=nats)
    for row in table.head(named).to_dict("records"):
        colour = "white" if abs(row[column]) > 0.6 * limit else "black"
        ax.annotate(row["label"], (row["head"], row["layer"]), ha="center", va="center", fontsize=7, color=colour)
    ax.xaxis.get_major_locator().set_params(integer=True)
    return labelled(ax, "head", "layer", f"Attention heads for {title}")


def neurons_per_layer(tables: Mapping[str, pd.DataFrame], n_layers: int, title: str, ax: Any = None) -> Any:
    """How many of the chosen neurons each layer has; one line a table, one point a layer."""
    ax = axes_or_new(ax)
    layers = range(n_layers)
    counts = pd.DataFrame(
        {name: table["layer"].value_counts().reindex(layers, fill_value=0) for name, table in tables.items()}
    )
    for (name, column), (colour, marker, line) in zip(counts.items(), _STYLES, strict=False):
        ax.plot(column.index, column, color=colour, marker=marker, linestyle=line, markersize=4, label=name)
    ax.legend(frameon=False)
    return labelled(ax, "layer", "neurons", f"Top neurons for {title}")


def curve(table: pd.DataFrame, title: str, ax: Any = None) -> Any:
    """What the target is measured by (left, solid) and its p (right, dashed) as subvalues are added one at a time."""
    ax, measure = axes_or_new(ax), _measure(table)
    name = _MEASURES[measure]
    (left,) = ax.plot(table["step"], table[measure], color=ATTN, label=name)
    right_axis = ax.twinx()
    (right,) = right_axis.plot(table["step"], table["prob"], color=LINE, linestyle="--", label="p")
    right_axis.set_ylabel("p")
    right_axis.set_ylim(bottom=0.0)
    ax.legend(handles=[left, right], frameon=False, loc="upper left")
    sublayers = all(parse_label(label).unit == "sublayer" for label in table["label"].iloc[1:])
    added = f"{'sublayers' if sublayers else 'subvalues'} added"
    return labelled(ax, added, f"{name} (nats)", f"From {table['label'].iloc[0]} on: {title}")


def activations(
    table: pd.DataFrame, title: str, ax: Any = None, top: int | None = 15, tokens: Sequence[str] = ()
) -> Any:
    """Bars of the components that drove a neuron most, in the table's order; the rest together as the last bar.

    `tokens` are the prompt's: what reads a source position is called by what stands there too.
    """
    ax = axes_or_new(ax)
    shown, rest = table.head(top or len(table)), table.iloc[top or len(table) :]
    names, scores = [_with_token(label, tokens) for label in shown["label"]], shown["score"].tolist()
    colours = [_colour(label) for label in shown["label"]]
    if len(rest):
        names, scores, colours = (
            [*names, f"{len(rest)} others, summed"],
            [*scores, rest["score"].sum()],
            [*colours, OTHER],
        )
    ax.barh(names, scores, color=colours)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    handles = [ax.barh([names[0]], [0], color=colour, label=label) for colour, label in _kinds(colours)]
    ax.legend(handles=handles, frameon=False)
    neuron, sums_to, whole = table.attrs["neuron"], table.attrs["sums_to"], _signed(float(table["score"].sum()))
    return labelled(ax, f"score; all add up to the {sums_to}, {whole}", "", f"{neuron}, switched on by: {title}")


def compare(table: pd.DataFrame, titles: Sequence[str], ax: Any = None, top: int | None = 15) -> Any:
    """Two bars a component, one for each trace, in the table's order; no bar where a trace has no such component."""
    ax = axes_or_new(ax)
    shown = table.head(top or len(table))
    names = [_with_tokens(row) for row in shown.to_dict("records")]
    for column, name, colour, shift in (("increase", titles[0], ATTN, -0.2), ("increase_other", titles[1], FFN, 0.2)):
        ax.barh(np.arange(len(shown)) + shift, shown[column], height=0.4, color=colour, label=name)
    ax.set_yticks(range(len(shown)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    ax.legend(frameon=False, fontsize="small")
    return labelled(ax, "increase (nats)", "", f"The {len(shown)} that differ most")


def plot_evaluation(table: pd.DataFrame, *, measure: str | None = None, ax: Any = None) -> Any:
    """Lines: what is left of the targets when the top k of each ranking are ablated, with the 95% intervals.

    Args:
        table: what `evaluate` gave; with `by=`, the rows of one group.
        measure: "log_prob", "log_prob_diff", "prob" or "mrr"; None is the difference where there is one, else log_prob.
        ax: axes to draw into; None makes a figure.

    Raises:
        ValueError: for another table or measure, and for rows of several groups.
        ImportError: without matplotlib.
    """
    if not isinstance(table, pd.DataFrame) or not {"ranking", "k", "log_prob_after"} <= set(table.columns):
        raise ValueError("plot_evaluation draws a table that tlsv.evaluate gave, with columns ranking, k and so on.")
    chosen = measure or _measure(table, "_after")
    names = {**_MEASURES, "prob": "p", "mrr": "mean reciprocal rank"}
    if chosen not in names or f"{chosen}_after" not in table:
        there = [repr(name) for name in names if f"{name}_after" in table]
        raise ValueError(f"measure is one of {', '.join(there)}, got {measure!r}.")
    if table.duplicated(["ranking", "k"]).any():
        raise ValueError(
            "the table has several groups of rows; pass those of one, such as table[table['kind'] == 'capital']."
        )
    ax = axes_or_new(ax)
    for number, (ranking, rows) in enumerate(table.groupby("ranking", sort=False)):
        rows = rows.sort_values("k")
        colour, marker, line = _STYLES[number % len(_STYLES)]
        after, low, high = (rows[f"{chosen}_after{end}"] for end in ("", "_low", "_high"))
        ax.plot(rows["k"], after, color=colour, marker=marker, linestyle=line, markersize=5, label=ranking)
        ax.fill_between(rows["k"], low, high, color=colour, alpha=0.12, linewidth=0)
    ax.axhline(table[f"{chosen}_before"].iloc[0], color="black", linewidth=0.8, label="nothing ablated")
    ax.set_xscale("log")
    ks = sorted(table["k"].unique())
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize="small")
    nats = " (nats)" if chosen in _MEASURES else ""
    facts = int(table["n_facts"].iloc[0])
    return labelled(
        ax, "FFN neurons ablated", f"{names[chosen]}{nats}", f"Targets of {facts} fact{'s' * (facts > 1)}, mean and 95%"
    )


def _words(words: Sequence[str]) -> str:
    more = f" or {len(words) - 3} others" if len(words) > 3 else ""
    return " or ".join(map(repr, words[:3])) + more


def _measure(table: pd.DataFrame, end: str = "") -> str:
    """What the target of a table is measured by."""
    return next(name for name in reversed(_MEASURES) if f"{name}{end}" in table)


def _increase(table: pd.DataFrame) -> tuple[str, str]:
    """A table's column of increases, and what an axis says of it."""
    measure = _measure(table, "_increase")
    return f"{measure}_increase", f"increase of {_MEASURES[measure]} (nats)"


def _signed(number: float) -> str:
    """A number with its sign, a true minus as on the axes."""
    return f"{number:+.2f}".replace("-", "−")


def _with_token(label: str, tokens: Sequence[str]) -> str:
    """A label, and the token at the source position that it names."""
    component = _component(label)
    position = None if component is None else component.position
    there = position is not None and position < len(tokens)
    return _plain(f"{label} {tokens[position]!r}") if there and position is not None else label


def _with_tokens(row: Mapping[Any, Any]) -> str:
    """A compared component's label, and the tokens at its source position in both prompts, where they differ."""
    tokens = [row[name] for name in ("token", "token_other") if isinstance(row.get(name), str)]
    return _plain(" ".join([row["label"], "/".join(map(repr, dict.fromkeys(tokens)))]).rstrip())


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def _kinds(colours: list[str]) -> list[tuple[str, str]]:
    names = {ATTN: "attention", FFN: "FFN", MIXER: "mixer", OTHER: "other"}
    return [(colour, name) for colour, name in names.items() if colour in colours]


def _component(label: str) -> Any:
    try:
        return parse_label(label)
    except ValueError:  # an embedding or a bias
        return None


def _colour(label: str) -> str:
    component = _component(label)
    return OTHER if component is None else SUBLAYERS.get(component.sublayer, ("", MIXER))[1]


def labelled(ax: Any, x: str, y: str, title: str) -> Any:
    """Axes with both names and a title; returns them."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, fontsize="medium")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax
