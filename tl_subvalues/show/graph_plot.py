"""The picture of a graph: nodes at their positions and layers, edges as wide as what they carry."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tl_subvalues.show.plots import ATTN, FFN, LINE, OTHER, axes_or_new, labelled

# The share of what flows into a node from which an edge is drawn.
_DRAWN = 0.02


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
    return labelled(ax, "", "layer", "What fed the output")


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
