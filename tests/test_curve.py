"""Curves against the readout of sums made by hand."""

import pytest
import torch
from helpers import zoo
from helpers.brute_force import BruteForce

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "phi", "olmo2", "cohere"])
@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
def test_layers_run_from_the_embedding_to_the_models_own_output(family: str, scale: str, tokens: torch.Tensor) -> None:
    trace = tlsv.trace(zoo.model(family), tokens, 5, scale=scale)
    brute = BruteForce(trace.model, family, tokens)
    curve = trace.curve(trace.layers())
    assert list(curve) == ["step", "label", "prob", "log_prob"]
    assert curve["step"].tolist() == list(range(len(trace.layers()) + 1))
    assert curve["label"].tolist() == ["0_pre", *trace.layers()["label"]]
    start = brute.cache["blocks.0.hook_resid_pre"][-1]
    assert curve["log_prob"].iloc[0] == pytest.approx(float(brute.log_probs(start[None], 6, scale)[0, 5]), abs=2e-5)
    assert curve["log_prob"].iloc[-1] == pytest.approx(float(brute.own_log_probs[-1, 5]), abs=2e-5)
    assert curve["prob"].to_numpy() == pytest.approx(torch.tensor(curve["log_prob"].to_numpy()).exp().numpy())


@pytest.mark.parametrize(("family", "start"), [("gpt2", "mid"), ("phi", "pre")])
def test_neurons_are_added_in_the_tables_order(family: str, start: str, tokens: torch.Tensor) -> None:
    """From what the earliest of them reads: in a sequential block the middle of the layer."""
    trace = tlsv.trace(zoo.model(family), tokens, 5)
    brute = BruteForce(trace.model, family, tokens)
    table = trace.ffn_neurons(top=12).query("layer == 1")
    parts = brute.parts("ffn_neuron", 1, 6)
    x = brute.residual(1, "mlp", 6)
    curve = trace.curve(table)
    assert curve["label"].iloc[0] == f"1_{start}"
    for step, label in enumerate(["", *table["label"]]):
        x = x + parts[label] if label else x
        expected = brute.log_probs(x[None], 6, "frozen")[0, 5]
        assert curve["log_prob"].iloc[step] == pytest.approx(float(expected), abs=2e-5)


def test_every_kind_of_label(tokens: torch.Tensor) -> None:
    """Heads, neurons and sublayers mix; a list of labels does as well as a table."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    labels = ["L1N5", "L0H1", "L1H2D3@4", "L1H0@2", "0_mlp_out"]
    curve = trace.curve(labels)
    assert curve["label"].tolist() == ["0_pre", *labels]
    brute = BruteForce(trace.model, "llama", tokens)
    added = [
        brute.parts("ffn_neuron", 1, 6)["L1N5"],
        brute.parts("head", 0, 6)["L0H1"],
        brute.parts("attn_neuron", 1, 6)["L1H2D3@4"],
        brute.parts("head_position", 1, 6)["L1H0@2"],
        brute.output(0, "mlp", 6),
    ]
    x = brute.residual(0, "attn", 6) + torch.stack(added).cumsum(0)
    expected = brute.log_probs(x, 6, "frozen")[:, 5]
    assert curve["log_prob"].to_numpy()[1:] == pytest.approx(expected.numpy(), abs=2e-5)


def test_longer_than_a_block(tokens: torch.Tensor) -> None:
    """The vectors are read in blocks: two thousand of them add up one by one all the same."""
    model = zoo.model("llama", intermediate_size=1000)
    trace = tlsv.trace(model, tokens, 5)
    table = trace.ffn_neurons(top=None)
    assert len(table) == 2000
    parts: dict[str, torch.Tensor] = {}
    for layer in (0, 1):
        stack, labels = tlsv.ffn_subvalues(model, trace.cache, layer, return_labels=True)
        parts |= dict(zip(labels, stack[:, 0], strict=True))
    start = trace.cache["blocks.0.hook_resid_mid"][0, -1].double()
    x = start + torch.stack([parts[label] for label in table["label"]]).double().cumsum(0)
    expected = trace.readout.log_prob(torch.cat([start[None], x]).float(), 5)
    assert trace.curve(table)["log_prob"].to_numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "no rows"),
        (["L1N5", "L1N5"], "more than once"),
        (5, "a table with a column 'label'"),
        (["L9N5"], "not in"),
        (["x"], "is not a label"),
    ],
)
def test_refusals(table: object, message: str, tokens: torch.Tensor) -> None:
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    with pytest.raises(ValueError, match=message):
        trace.curve(table)
    with pytest.raises(ValueError, match="no column 'label'"):
        trace.curve(trace.layers().drop(columns="label"))
