"""Pictures of tables, one axes each: takes the numbers as they are in the table, draws them, returns the axes.

Needs matplotlib: pip install 'tl-subvalues[plots]'. Without `ax`, a figure is made.

Colours are Okabe and Ito's, which the colour-blind tell apart and which differ in grey: attention is dark, FFN light.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tl_subvalues.labels import parse_label

ATTN, FFN, OTHER, LINE = "#0072B2", "#E69F00", "#999999", "#D55E00"
NATS = "increase of log p (nats)"
# The share of what flows into a node from which an edge is drawn.
_DRAWN = 0.02


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


def title(prompt: str, target: str) -> str:
    """A prompt, its end only where it is long, and its target."""
    shown = prompt if len(prompt) <= 40 else f"…{prompt[-39:]}"
    return f"{shown!r} → {target!r}".replace("$", r"\$")  # a dollar sign opens mathematics


def layers(table: pd.DataFrame, title: str, ax: Any = None) -> Any:
    """Two bars a layer, attention and FFN: what each sublayer's output adds to the target's log-probability."""
    ax = axes_or_new(ax)
    for sublayer, name, colour, shift in (("attn", "attention", ATTN, -0.2), ("mlp", "FFN", FFN, 0.2)):
        rows = table[table["sublayer"] == sublayer]
        ax.bar(rows["layer"] + shift, rows["log_prob_increase"], width=0.4, color=colour, label=name)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.legend(frameon=False)
    return _labelled(ax, "layer", NATS, f"Sublayers for {title}")


def heads(table: pd.DataFrame, title: str, ax: Any = None, named: int = 3) -> Any:
    """Heat map of heads by layer; the strongest few carry their labels."""
    ax = axes_or_new(ax)
    grid = table.pivot(index="layer", columns="head", values="log_prob_increase")
    grid = grid.reindex(range(grid.index.min(), grid.index.max() + 1))  # a layer without attention stays empty
    limit = max(float(np.nanmax(np.abs(grid.to_numpy()))), 1e-12)
    extent = (grid.columns.min() - 0.5, grid.columns.max() + 0.5, grid.index.min() - 0.5, grid.index.max() + 0.5)
    image = ax.imshow(
        grid, cmap="PuOr", vmin=-limit, vmax=limit, origin="lower", aspect="auto", extent=extent, interpolation="none"
    )
    ax.figure.colorbar(image, ax=ax, label=NATS)
    for row in table.head(named).itertuples():
        dark = abs(row.log_prob_increase) > 0.6 * limit
        ax.annotate(
            row.label, (row.head, row.layer), ha="center", va="center", fontsize=7, color="white" if dark else "black"
        )
    ax.xaxis.get_major_locator().set_params(integer=True)
    return _labelled(ax, "head", "layer", f"Attention heads for {title}")


def neurons_per_layer(tables: Mapping[str, pd.DataFrame], n_layers: int, title: str, ax: Any = None) -> Any:
    """How many of the chosen neurons each layer has; one line a table, one point a layer."""
    ax = axes_or_new(ax)
    layers = range(n_layers)
    counts = pd.DataFrame(
        {name: table["layer"].value_counts().reindex(layers, fill_value=0) for name, table in tables.items()}
    )
    styles = ((ATTN, "s", "-"), (FFN, "o", "-"), (LINE, "^", "--"), (OTHER, "v", ":"))
    for (name, column), (colour, marker, line) in zip(counts.items(), styles, strict=False):
        ax.plot(column.index, column, color=colour, marker=marker, linestyle=line, markersize=4, label=name)
    ax.legend(frameon=False)
    return _labelled(ax, "layer", "neurons", f"Top neurons for {title}")


def curve(table: pd.DataFrame, title: str, ax: Any = None) -> Any:
    """Log p (left, solid) and p (right, dashed) of the target as subvalues are added one at a time."""
    ax = axes_or_new(ax)
    (left,) = ax.plot(table["step"], table["log_prob"], color=ATTN, label="log p")
    right_axis = ax.twinx()
    (right,) = right_axis.plot(table["step"], table["prob"], color=LINE, linestyle="--", label="p")
    right_axis.set_ylabel("p")
    right_axis.set_ylim(bottom=0.0)
    ax.legend(handles=[left, right], frameon=False, loc="upper left")
    return _labelled(ax, "subvalues added", "log p (nats)", f"From {table['label'].iloc[0]} on: {title}")


def activations(table: pd.DataFrame, title: str, ax: Any = None, top: int | None = 15) -> Any:
    """Bars of the components that drove a neuron most, in the table's order; the rest together as the last bar."""
    ax = axes_or_new(ax)
    shown, rest = table.head(top or len(table)), table.iloc[top or len(table) :]
    names, scores = shown["label"].tolist(), shown["score"].tolist()
    colours = [_colour(name) for name in names]
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
    neuron, sums_to = table.attrs["neuron"], table.attrs["sums_to"]
    return _labelled(
        ax, f"score; all add up to the {sums_to}, {table['score'].sum():+.2f}", "", f"{neuron}, switched on by: {title}"
    )


def graph(nodes: pd.DataFrame, edges: pd.DataFrame, tokens: Sequence[str], ax: Any = None) -> Any:
    """Nodes by position (left to right) and layer (upwards).

    An edge is as wide as its share of what flows into its node, red where it lowers; edges below 2% are not drawn.
    Neurons at attention sinks are drawn hollow. The strongest carry their labels.
    """
    ax = axes_or_new(ax)
    place = _node_places(nodes)
    drawn = edges[edges["source"].isin(place)].copy()
    drawn["share"] = drawn["weight"].abs() / drawn["target"].map(_inflows(edges))
    drawn = drawn[drawn["share"] >= _DRAWN].sort_values("share")
    for row in drawn.itertuples():
        (x0, y0), (x1, y1) = place[row.source], place[row.target]
        colour, strength = ATTN if row.weight >= 0 else LINE, min(1.0, 0.2 + row.share)
        ax.plot([x0, x1], [y0, y1], color=colour, linewidth=0.4 + 3.0 * row.share, alpha=strength, zorder=1)
    largest = max(float(nodes.loc[nodes["kind"] == "neuron", "total_effect"].abs().max()), 1e-12)
    for row in nodes.itertuples():
        x, y = place[row.label]
        size = 30.0 + 90.0 * abs(row.total_effect) / largest if row.kind == "neuron" else 60.0
        face = "white" if row.sink else FFN if row.kind == "neuron" else OTHER
        ax.scatter([x], [y], s=min(size, 140.0), color=face, edgecolor="black", linewidth=0.8, zorder=2)
    named = nodes[nodes["kind"] == "neuron"].nlargest(12, "total_effect", keep="first")
    for row in named.itertuples():
        ax.annotate(row.label, place[row.label], xytext=(4, 4), textcoords="offset points", fontsize=6, zorder=3)
    ax.annotate(nodes.iloc[-1]["token"], place[nodes.iloc[-1]["label"]], xytext=(5, 5), textcoords="offset points")
    ax.set_xticks(range(len(tokens)), [repr(token) for token in tokens], rotation=30, ha="right")
    ax.set_xlim(-0.5, len(tokens) - 0.2)
    return _labelled(ax, "", "layer", "What fed the output")


def _node_places(nodes: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Where each node is drawn; neurons of one layer and position side by side."""
    top = int(nodes["layer"].max()) + 2 if nodes["layer"].notna().any() else 1
    place: dict[str, tuple[float, float]] = {}
    beside: dict[tuple[int, int], int] = {}
    for row in nodes.itertuples():
        y = -1 if row.kind == "embedding" else top if row.kind == "target" else int(row.layer)
        number = beside[y, row.position] = beside.get((y, row.position), -1) + 1
        place[row.label] = (row.position + 0.12 * ((number + 1) // 2) * (-1) ** number, float(y))
    return place


def _inflows(edges: pd.DataFrame) -> pd.Series:
    """What flows into each node, signs left out."""
    return edges.assign(size=edges["weight"].abs()).groupby("target")["size"].sum().clip(lower=1e-12)


def _kinds(colours: list[str]) -> list[tuple[str, str]]:
    names = {ATTN: "attention", FFN: "FFN", OTHER: "other"}
    return [(colour, name) for colour, name in names.items() if colour in colours]


def _colour(label: str) -> str:
    try:
        return ATTN if parse_label(label).sublayer == "attn" else FFN
    except ValueError:  # an embedding or a bias
        return OTHER


def _labelled(ax: Any, x: str, y: str, title: str) -> Any:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, fontsize="medium")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax
