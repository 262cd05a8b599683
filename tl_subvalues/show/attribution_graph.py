"""The attribution-graph JSON that circuit-tracer's frontend and Neuronpedia read.

Its nodes are transcoder features, reconstruction errors, embeddings and logits. Ours go as features, by layer, neuron
and position: raw neurons, which no dictionary explains, so that viewers have no examples for them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tl_subvalues.labels import parse_label

# Sources of edges that are no nodes.
OTHERS, BIAS = "others", "bias"


@dataclass(frozen=True, eq=False)
class GraphTables:
    """Nodes and edges of a graph, of a trace or of a saved one; `tlsv.Graph` says what their columns are."""

    nodes: pd.DataFrame
    edges: pd.DataFrame
    score: float
    rule: str

    def to_networkx(self) -> Any:
        """A networkx.DiGraph: nodes and edges with the tables' columns as attributes.

        Raises:
            ImportError: without networkx.
        """
        return networkx_graph(self.nodes, self.edges, score=self.score, rule=self.rule)


def attribution_graph(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    *,
    slug: str,
    model: str,
    tokens: Sequence[str],
    token_ids: Sequence[int],
    target_id: int,
    prob: float,
    n_layers: int,
) -> dict[str, Any]:
    """Nodes and links of a graph in that format; influences are shares of the total effects' sizes.

    Args:
        nodes: of `Graph`.
        edges: of `Graph`.
        slug: what viewers call the graph.
        model: the model's name, their "scan".
        tokens: the prompt's.
        token_ids: the prompt's.
        target_id: the target's first word.
        prob: of the target.
        n_layers: of the model.
    """
    neurons = nodes[nodes["kind"] == "neuron"]
    influence = neurons["total_effect"].abs() / max(float(neurons["total_effect"].abs().sum()), 1e-30)
    made = {row.label: _neuron(row, float(share)) for row, share in zip(neurons.itertuples(), influence, strict=True)}
    for row in nodes[nodes["kind"] == "embedding"].itertuples():
        made[row.label] = _embedding(row.position, int(token_ids[row.position]))
    made["target"] = _logit(int(nodes.iloc[-1]["position"]), target_id, nodes.iloc[-1]["token"], prob, n_layers)
    links = [
        {"source": made[row.source]["node_id"], "target": made[row.target]["node_id"], "weight": row.weight}
        for row in edges.itertuples()
        if row.source in made
    ]
    return {
        "metadata": {
            "slug": slug,
            "scan": model,
            "transcoder_list": [],
            "prompt_tokens": [_shown(token) for token in tokens],
            "prompt": "".join(tokens),
            "node_threshold": None,
            "schema_version": 1,
            "info": {
                "creator_name": "tl-subvalues",
                "description": "Features are raw FFN neurons; weights are exact flows of a frozen model.",
            },
        },
        "qParams": {"linkType": "both", "pinnedIds": [], "clickedId": "", "supernodes": [], "sg_pos": ""},
        "nodes": list(made.values()),
        "links": links,
    }


def write_graph(made: dict[str, Any], path: Any) -> None:
    """Write what `attribution_graph` made."""
    Path(path).write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def networkx_graph(nodes: pd.DataFrame, edges: pd.DataFrame, **attributes: Any) -> Any:
    """A networkx.DiGraph: nodes and edges with the tables' columns as attributes; "others" and "bias" are left out.

    Raises:
        ImportError: without networkx.
    """
    try:
        import networkx
    except ImportError as error:
        raise ImportError("to_networkx needs networkx: pip install 'tl-subvalues[graph]'.") from error
    graph = networkx.DiGraph(**attributes)
    for row in nodes.to_dict("records"):
        graph.add_node(row.pop("label"), **row)
    for row in edges[~edges["source"].isin([OTHERS, BIAS])].to_dict("records"):
        graph.add_edge(row.pop("source"), row.pop("target"), **row)
    return graph


def _neuron(row: Any, influence: float) -> dict[str, Any]:
    component = parse_label(row.label)
    number = component.neuron if component.expert is None else f"{component.expert}.{component.neuron}"
    return {
        **_node(f"{row.layer}_{number}_{row.position}", f"{row.layer}_{number}-0", int(row.position)),
        "feature": component.neuron,
        "layer": str(row.layer),
        "feature_type": "cross layer transcoder",
        "clerp": row.label,
        "influence": influence,
        "activation": float(row.coefficient),
    }


def _embedding(position: int, token_id: int) -> dict[str, Any]:
    return {
        **_node(f"E_{token_id}_{position}", f"E_{token_id}-{position}", position),
        "feature": position,
        "layer": "E",
        "feature_type": "embedding",
    }


def _logit(position: int, token_id: int, token: str, prob: float, n_layers: int) -> dict[str, Any]:
    layer = str(n_layers + 1)
    return {
        **_node(f"{layer}_{token_id}_{position}", f"L_{token_id}-{position}", position),
        "feature": token_id,
        "layer": layer,
        "feature_type": "logit",
        "token_prob": prob,
        "is_target_logit": True,
        "clerp": f'Output "{_shown(token)}" (p={prob:.3f})',
    }


def _node(node_id: str, js_id: str, position: int) -> dict[str, Any]:
    """What all kinds of nodes have."""
    return {
        "node_id": node_id,
        "jsNodeId": js_id,
        "ctx_idx": position,
        "reverse_ctx_idx": 0,
        "run_idx": 0,
        "token_prob": 0.0,
        "is_target_logit": False,
        "clerp": "",
        "influence": None,
        "activation": None,
    }


def _shown(token: str) -> str:
    """A token in one line."""
    return token.replace("\n", "⏎").replace("\t", "→").replace("\r", "↵")
