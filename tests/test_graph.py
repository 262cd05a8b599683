"""The graph: edges against a frozen model led forward, sums, the fixture by autograd, heads, pruning, exports."""

import json
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import zoo
from helpers.frozen_forward import FrozenForward
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.labels import parse_label

pytestmark = pytest.mark.any_release

EXPECTED = json.loads((Path(__file__).parent / "data" / "frozen_effects.json").read_text(encoding="utf-8"))
TARGET = 17
FAMILIES = ["gpt2", "llama_biased_tied", "gemma3", "olmo2", "gpt_neox_parallel", "opt"]
COLUMNS = ["label", "kind", "layer", "position", "token", "coefficient", "direct_effect", "total_effect", "sink"]


def inflow(graph: tlsv.Graph) -> pd.Series:
    return graph.edges.groupby("target")["weight"].sum()


def coefficients(graph: tlsv.Graph) -> pd.Series:
    nodes = graph.nodes.set_index("label")
    return nodes.loc[nodes["kind"] != "embedding", "coefficient"]


@pytest.mark.slow
@pytest.mark.bridge
@pytest.mark.parametrize("rule", ["frozen", "half"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_led_forward_through_attention_alone(family: str, rule: Any, tokens: Tensor) -> None:
    """Every edge of a graph that nothing was pruned from."""
    model = zoo.bridge(family)
    forward = FrozenForward(model, family, tokens, TARGET, rule == "half")
    graph = tlsv.trace(model, tokens, TARGET).graph(nodes=12, edges=1.0, rule=rule)
    size = graph.edges["weight"].abs().max()
    between = 0
    for row in graph.edges[~graph.edges["source"].isin(["others", "bias"])].itertuples():
        if row.source.startswith("embed@"):
            layer, at = -1, int(row.source.removeprefix("embed@"))
            vector = forward.brute.residual(0, "mlp" if family in forward.one_norm else "attn", at)
        else:
            source = parse_label(row.source)
            layer, at = source.layer, source.at
            vector = forward.brute.parts("ffn_neuron", layer, at)[row.source.rpartition("@")[0]]
        reader = None
        if row.target != "target":
            found = parse_label(row.target)
            reader = (found.layer, found.at, found.neuron)
            between += layer >= 0
        expected = forward.edge(layer, at, vector, reader)
        assert abs(row.weight - expected) < 2e-4 * max(1.0, size), (row.source, row.target)
    assert between > 0
    assert set(graph.edges["source"]) >= {"others", "bias", "embed@0"}


@pytest.mark.slow
@pytest.mark.each_release
@pytest.mark.bridge
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "mixtral", "qwen3_moe", "gptj", "starcoder2"])
def test_sums(family: str, tokens: Tensor) -> None:
    """Whatever is kept, what flows into a node adds up to its coefficient, into the target to the score."""
    trace = tlsv.trace(zoo.bridge(family), tokens, TARGET)
    for nodes, edges, rule in ((1, 0.1, "frozen"), (20, 0.6, "half"), (400, 1.0, "frozen")):
        graph = trace.graph(nodes=nodes, edges=edges, rule=rule)
        found, expected = inflow(graph), coefficients(graph)
        assert set(found.index) == set(expected.index)
        tolerance = 1e-4 * max(1.0, graph.edges["weight"].abs().max())
        assert (found - expected).abs().max() < tolerance
        assert graph.score == pytest.approx(trace.effects(rule=rule).attrs["score"], abs=1e-5)


@pytest.mark.bridge
def test_nodes_are_the_strongest_neurons(tokens: Tensor) -> None:
    """As `effects` has them, with every embedding and the target."""
    trace = tlsv.trace(zoo.bridge("llama"), tokens, TARGET)
    graph, effects = trace.graph(nodes=9), trace.effects(rule="frozen", top=9).set_index("label")
    assert list(graph.nodes.columns) == COLUMNS
    neurons = graph.nodes[graph.nodes["kind"] == "neuron"].set_index("label")
    assert set(neurons.index) == set(effects.index)
    for name in ("total_effect", "direct_effect", "coefficient"):
        np.testing.assert_array_equal(neurons[name], effects.loc[neurons.index, name])
    assert list(graph.nodes["kind"]) == ["embedding"] * 7 + ["neuron"] * 9 + ["target"]
    target = graph.nodes.iloc[-1]
    assert (target["label"], target["token"], target["position"]) == ("target", trace.target_token, 6)
    embedded = trace.effects("embedding", rule="frozen", top=None).set_index("label")["total_effect"]
    found = graph.nodes[graph.nodes["kind"] == "embedding"].set_index("label")["total_effect"]
    np.testing.assert_allclose(found, embedded[found.index], atol=1e-6)


@pytest.mark.bridge
def test_heads_that_carried_an_edge(tokens: Tensor) -> None:
    """Between positions there is nothing but heads; what a position keeps of itself is the rest to 1."""
    graph = tlsv.trace(zoo.bridge("llama"), tokens, TARGET).graph(nodes=12, edges=1.0)
    final = graph.edges[(graph.edges["target"] == "target") & graph.edges["source"].str.endswith(("@2", "@3"))]
    heads_in_layer_1 = final[final["source"].str.startswith("L0")]
    assert len(heads_in_layer_1)
    for row in heads_in_layer_1.itertuples():  # one attention sublayer away: shares are the whole
        at = row.source.rpartition("@")[2]
        assert all(one["head"].startswith("L1H") and one["head"].endswith(f"@{at}") for one in row.through)
        assert sum(one["share"] for one in row.through) == pytest.approx(1.0, abs=0.1)
        sizes = [abs(one["share"]) for one in row.through]
        assert sizes == sorted(sizes, reverse=True)
    trace, row = graph.trace, heads_in_layer_1.iloc[0]
    best = row["through"][0]
    table = trace.head_positions(top=None).set_index("label")  # the head is there
    assert best["head"] in table.index


@pytest.mark.bridge
def test_fewer_edges_are_the_strongest(tokens: Tensor) -> None:
    """Those that are kept are the same edges with the same weights; fewer for a smaller share."""
    trace = tlsv.trace(zoo.bridge("llama"), tokens, TARGET)
    whole = trace.graph(nodes=20, edges=1.0).edges.set_index(["source", "target"])["weight"]
    last = len(whole)
    for share in (0.95, 0.6, 0.2):
        kept = trace.graph(nodes=20, edges=share).edges
        assert len(kept) < last
        last = len(kept)
        named = kept[~kept["source"].isin(["others", "bias"])].set_index(["source", "target"])["weight"]
        np.testing.assert_allclose(named, whole[named.index])
    order = whole.drop(["others", "bias"], level="source").xs("target", level="target").abs().sort_values()
    into = kept[(kept["target"] == "target") & ~kept["source"].isin(["others", "bias"])]
    assert set(into["source"]) == set(order.index[-len(into) :])


@pytest.mark.bridge
def test_ablating_each(tokens: Tensor) -> None:
    """The measured effect of each and of all, by hand; positions that are told in the label."""
    model = zoo.bridge("llama")
    trace = tlsv.trace(model, tokens, TARGET)
    table = trace.graph(nodes=6).ablate()
    assert list(table.columns)[:1] == ["label"]

    def by_hand(labels: list[str]) -> float:
        hooks = []
        for label in labels:
            one = parse_label(label)

            def zero(value: Tensor, hook: Any, one: Any = one) -> Tensor:
                value[:, one.at, one.neuron] = 0.0
                return value

            hooks.append((f"blocks.{one.layer}.mlp.hook_post", zero))
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        return trace.log_prob - float(logits[0, -1].double().log_softmax(-1)[TARGET])

    for row in table.itertuples():
        assert row.measured_effect == pytest.approx(by_hand([row.label]), abs=2e-5)
    assert table.attrs["together"] == pytest.approx(by_hand(list(table["label"])), abs=2e-5)
    seen = table[~table["sink"]]
    assert table.attrs["rank_correlation"] == pytest.approx(
        seen["total_effect"].rank().corr(seen["measured_effect"].rank()), abs=1e-9
    )
    assert table.attrs["correlation"] == pytest.approx(seen["total_effect"].corr(seen["measured_effect"]), abs=1e-9)
    small = table["direct_effect"].abs() < 0.05
    along = table["measured_effect"] * np.sign(table["direct_effect"])
    assert list(table["self_repair"]) == list(~small & (along < 0.5 * table["direct_effect"].abs()))
    labels = trace.ablate_each(list(table["label"]))
    np.testing.assert_allclose(labels["measured_effect"], table["measured_effect"], atol=1e-5)
    assert list(labels.columns) == ["label", "measured_effect"]


@pytest.mark.slow
@pytest.mark.bridge
def test_exports(tokens: Tensor, tmp_path: Path) -> None:
    """networkx, and the JSON with every field of circuit-tracer's models, of their types, links between its nodes."""
    networkx = pytest.importorskip("networkx")
    graph = tlsv.trace(zoo.bridge("mixtral"), tokens, TARGET).graph(nodes=10)
    made = graph.to_networkx()
    edges = graph.edges[~graph.edges["source"].isin(["others", "bias"])]
    assert set(made.nodes) == set(graph.nodes["label"])
    assert made.number_of_edges() == len(edges)
    assert networkx.is_directed_acyclic_graph(made)
    row = edges.iloc[0]
    assert made.edges[row["source"], row["target"]]["weight"] == row["weight"]

    graph.to_json(tmp_path / "graph.json", slug="a-graph")
    read = json.loads((tmp_path / "graph.json").read_text(encoding="utf-8"))
    node_fields = {
        "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
        "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
    }  # fmt: skip
    for node in read["nodes"]:
        assert {name: type(node[name]) for name in node_fields} == node_fields
        assert all(node[name] is None or isinstance(node[name], float) for name in ("influence", "activation"))
    known = {node["node_id"] for node in read["nodes"]}
    assert len(known) == len(read["nodes"]) == len(graph.nodes)
    assert all(link["source"] in known and link["target"] in known for link in read["links"])
    assert len(read["links"]) == len(edges)
    assert {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt"} <= set(read["metadata"])
    assert {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"} == set(read["qParams"])
    (target,) = [node for node in read["nodes"] if node["is_target_logit"]]
    assert target["feature"] == TARGET
    assert [node["feature_type"] for node in read["nodes"]].count("embedding") == 7


@pytest.mark.bridge
def test_the_picture(tokens: Tensor) -> None:
    """A mark for every node, hollow where a sink is."""
    pytest.importorskip("matplotlib").use("Agg")
    graph = tlsv.trace(zoo.bridge("llama"), tokens, TARGET).graph(nodes=9)
    ax = graph.plot()
    assert len(ax.collections) == len(graph.nodes)
    shares = graph.edges.assign(size=graph.edges["weight"].abs())
    shares = shares["size"] / shares.groupby("target")["size"].transform("sum")
    drawn = ((shares >= 0.02) & ~graph.edges["source"].isin(["others", "bias"])).sum()
    assert len(ax.lines) == drawn > 0


@pytest.mark.bridge
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 0}, "nodes is a positive number, got 0"),
        ({"nodes": True}, "nodes is a positive number"),
        ({"edges": 0.0}, "edges is the share of influence"),
        ({"edges": 1.5}, "edges is the share of influence"),
        ({"rule": "gradient"}, "rule is 'frozen' or 'half', in which flows add up"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    trace = tlsv.trace(zoo.bridge("llama"), tokens, TARGET)
    with pytest.raises(ValueError, match=message):
        trace.graph(**arguments)


def plain_rms(self: Any, x: Tensor) -> Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.mark.bridge
@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_real_model_equals_the_fixture(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges by autograd over Hugging Face modules; in float64, norms and softmax too."""
    if dtype == torch.float64:
        llama = pytest.importorskip("transformers.models.llama.modeling_llama")
        softmax = torch.nn.functional.softmax
        monkeypatch.setattr(llama.LlamaRMSNorm, "forward", plain_rms)
        monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=-1, dtype=None, **_: softmax(x, dim))
    tolerance = 2e-3 if dtype == torch.float32 else 1e-9
    model = tlsv.load_model(dtype=dtype)
    for case in EXPECTED["cases"]:
        trace = tlsv.trace(model, case["tokens"], case["target_ids"], against=case["against_ids"])
        for rule in ("frozen", "half"):
            graph = trace.graph(nodes=25, edges=1.0, rule=rule)
            weights = graph.edges.set_index(["source", "target"])["weight"]
            total = weights.drop("bias", level="source").groupby("target").sum()
            compared = 0
            for row in case["rules"][rule]["neurons"]:
                label = row["label"]
                assert total[label] == pytest.approx(row["inflow_without_biases"], abs=tolerance)
                assert weights.get((label, "target"), 0.0) == pytest.approx(
                    row["through_attention_only"], abs=tolerance
                )
                for at, expected in enumerate(row["embedding_edges_in"]):
                    assert weights.get((f"embed@{at}", label), 0.0) == pytest.approx(expected, abs=tolerance)
                for source, expected in row["strongest_edges_in"]:
                    if (source, label) in weights:  # where the source is a node
                        assert weights[source, label] == pytest.approx(expected, abs=tolerance)
                        compared += 1
            assert compared >= 50
