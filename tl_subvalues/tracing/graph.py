"""The graph of a trace: which neurons at which positions made the output, what fed them, and which heads carried it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.show import graph_plot
from tl_subvalues.show.attribution_graph import BIAS, OTHERS, GraphTables, attribution_graph, write_graph
from tl_subvalues.tracing.prediction import ablate_each
from tl_subvalues.upstream.graph import Carried, Flows, Neuron, flows_of
from tl_subvalues.upstream.led_back import FROZEN_RULES

if TYPE_CHECKING:
    from tl_subvalues.tracing.trace import Trace

TARGET = "target"
GraphRule = Literal["frozen", "half"]
# Heads that are named on an edge: the strongest, down to this share of it.
_HEADS, _SHARE = 5, 0.02


@dataclass(frozen=True, eq=False)
class Graph(GraphTables):
    """FFN neurons at positions, embeddings and the target, and what each adds to later ones through attention.

    Attributes:
        nodes: label, kind ("embedding", "neuron", "target"), layer, position, token, coefficient, direct_effect,
            total_effect, sink.
        edges: source, target, weight (what the source adds to the target's coefficient, or to the score), through (the
            heads at source positions that took it from where it was added, with their shares of the weight; what is
            missing to 1 went through heads of less than 2%, or stayed in its position's residual stream). For every
            target, the rows of source "others" (all neurons that are no nodes, and edges that were pruned) and "bias"
            make the weights add up to its coefficient.
        score: ⟨x_final, γ_final⟩, what flows into the target.
        rule: how coefficients were made linear, "frozen" or "half".
    """

    trace: Any = field(repr=False)

    def to_json(self, path: Any, *, slug: str = "tl-subvalues") -> None:
        """Write the attribution-graph JSON that circuit-tracer's and Neuronpedia's viewers read.

        Their nodes are transcoder features; ours are raw FFN neurons and go by their numbers. "others" and "bias" have
        no counterpart and are left out, as are the heads that carried an edge and the effects.
        """
        trace, view = self.trace, self.trace.run.view
        made = attribution_graph(
            self.nodes, self.edges, slug=slug, model=view.name, tokens=trace.str_tokens,
            token_ids=trace.tokens.tolist(), target_id=trace.target_id, prob=trace.prob, n_layers=view.n_layers,
        )  # fmt: skip
        write_graph(made, path)

    def ablate(self) -> pd.DataFrame:
        """Each neuron set to zero at its position: the measured effect beside the predicted one. See `ablate_each`."""
        return ablate_each(self.trace, self.nodes[self.nodes["kind"] == "neuron"])

    def plot(self, *, ax: Any = None) -> Any:
        """Positions from left to right, layers upwards; lines as wide as what flows."""
        return graph_plot.graph(self.nodes, self.edges, self.trace.str_tokens, ax)


def graph_of(trace: "Trace", nodes: SupportsIndex, edges: float, rule: GraphRule) -> Graph:
    """The graph of a trace's strongest neurons, its edges pruned.

    Raises:
        ValueError: for a number of nodes below 1, a share of edges outside 0 to 1, or another rule.
        UnsupportedModelError: as `effects`.
    """
    nodes = whole_number(nodes, "nodes")
    if isinstance(edges, bool) or not isinstance(edges, float | int) or not 0.0 < edges <= 1.0:
        raise ValueError(f"edges is the share of influence that edges are kept for, from 0 to 1, got {edges!r}.")
    if rule not in tuple(FROZEN_RULES):
        raise ValueError(f"rule is 'frozen' or 'half', in which flows add up, got {rule!r}.")
    table = trace.effects(top=nodes, rule=rule)
    expert = table["expert"] if "expert" in table else pd.Series(pd.NA, index=table.index)
    neurons = [
        Neuron(int(layer), int(neuron), int(at), None if pd.isna(e) else int(e))
        for layer, neuron, at, e in zip(table["layer"], table["neuron"], table["position"], expert, strict=True)
    ]
    final = trace.readout.gradient(trace.target, trace.run.activations.final_residual(trace.position)[0])
    flows = flows_of(trace.run, FROZEN_RULES[rule], final, neurons)
    names = [TARGET, *table["label"], *(f"embed@{p}" for p in range(flows.from_embeddings.shape[1]))]
    return Graph(
        _node_table(trace, table, rule, flows), _edge_table(names, flows, edges), float(flows.read[0]), rule, trace
    )


def _node_table(trace: "Trace", table: pd.DataFrame, rule: GraphRule, flows: Flows) -> pd.DataFrame:
    """Embeddings by position, neurons by layer, the target last."""
    embedded = trace.effects("embedding", top=None, rule=rule)
    embedded = embedded[embedded["position"].notna()]
    by_position = embedded.groupby("position", as_index=False)[["direct_effect", "total_effect"]].sum()
    sinks = set(embedded.loc[embedded["sink"], "position"])
    embeddings = by_position.assign(
        label=[f"embed@{p}" for p in by_position["position"]],
        kind="embedding",
        token=[trace.str_tokens[p] for p in by_position["position"]],
        sink=[p in sinks for p in by_position["position"]],
    )
    neurons = table.sort_values(["layer", "position"], kind="stable").assign(kind="neuron")
    score = float(flows.read[0])
    target = pd.DataFrame(
        {
            "label": [TARGET],
            "kind": [TARGET],
            "position": [trace.position],
            "token": [trace.target_token],
            "coefficient": [score],
            "direct_effect": [score],
            "total_effect": [score],
            "sink": [False],
        }
    )
    columns = ["label", "kind", "layer", "position", "token", "coefficient", "direct_effect", "total_effect", "sink"]
    frames = [frame.reindex(columns=columns) for frame in (embeddings, neurons, target)]
    nodes = pd.DataFrame({name: [value for frame in frames for value in frame[name]] for name in columns})
    nodes["layer"] = nodes["layer"].astype("Int64")
    nodes["position"] = nodes["position"].astype(np.int64)
    return nodes


def _edge_table(names: list[str], flows: Flows, kept: float) -> pd.DataFrame:
    """Edges that are kept, the strongest first for every target, then "others" and "bias"."""
    weights = torch.cat([flows.from_neurons, flows.from_embeddings], 1).double().cpu()
    others, bias = flows.others.double().cpu(), flows.bias.double().cpu()
    chosen = _strongest(weights, others, bias, kept)
    rows: list[dict[str, Any]] = []
    for reader in range(len(weights)):
        mine = torch.nonzero(chosen[reader]).flatten()
        mine = mine[torch.argsort(weights[reader, mine].abs(), descending=True)]
        for source in mine.tolist():
            weight = float(weights[reader, source])
            through = _through(names[1 + source], flows.carried, reader, source, weight)
            rows.append({"source": names[1 + source], "target": names[reader], "weight": weight, "through": through})
        rest = float(others[reader] + weights[reader][~chosen[reader]].sum())
        rows.append({"source": OTHERS, "target": names[reader], "weight": rest, "through": []})
        rows.append({"source": BIAS, "target": names[reader], "weight": float(bias[reader]), "through": []})
    return pd.DataFrame(rows, columns=["source", "target", "weight", "through"])


def _strongest(weights: Tensor, others: Tensor, bias: Tensor, kept: float) -> Tensor:
    """Which edges hold a share `kept` of the influence on the target that flows along edges.

    As circuit-tracer prunes: weights taken without their signs and as shares of all that flows into a reader, a node's
    influence is what flows from it to the target over all paths, an edge's its share times its reader's influence.
    Otherwise than there, what flows in from no node and from bias terms counts among what flows in, and no node is
    pruned: pass fewer.
    """
    n_readers = len(weights)
    shares = weights.abs() / (weights.abs().sum(1) + others.abs() + bias.abs()).clamp(min=1e-30)[:, None]
    influence = torch.zeros(n_readers, dtype=torch.float64)
    influence[0] = 1.0
    flowing = influence.clone()
    while bool(flowing.any()):  # as many times as a path is long: neurons only read what comes before them
        flowing = torch.cat([torch.zeros(1, dtype=torch.float64), (flowing @ shares)[: n_readers - 1]])
        influence = influence + flowing
    edges = influence[:, None] * shares
    order = torch.argsort(edges.flatten(), descending=True)
    reached = edges.flatten()[order].cumsum(0) / edges.sum().clamp(min=1e-30)
    n_kept = int((reached < kept).sum()) + 1
    chosen = torch.zeros(edges.numel(), dtype=torch.bool)
    chosen[order[:n_kept]] = True
    return (chosen & (edges.flatten() > 0)).view_as(edges)


def _through(name: str, carried: list[Carried], reader: int, source: int, weight: float) -> list[dict[str, Any]]:
    """The heads that took the most of an edge from where its source was added, with their shares."""
    position = name.rpartition("@")[2]
    found = [
        {"head": f"L{one.layer}H{head}@{position}", "share": share / weight}
        for one in carried
        for head, share in enumerate(one.shares[reader, source].tolist())
        if weight and abs(share) >= _SHARE * abs(weight)
    ]
    return sorted(found, key=lambda one: -abs(one["share"]))[:_HEADS]
