"""Query scores against the formula taken literally, one value neuron at a time."""

import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.upstream import query

pytestmark = pytest.mark.any_release

UNITS = {"sublayer": "query_layers", "head": "query_heads", "head_position": "query_head_positions"}


def by_formula(trace: tlsv.Trace, values: pd.DataFrame, by: str) -> pd.Series:
    """Σ_j Δ_j · score(c -> j) / Σ_c' score(c' -> j), from the activation tables."""
    total: dict[str, float] = {}
    for label, increase in zip(values["label"], values["log_prob_increase"], strict=True):
        table = trace.activations(label, by)
        scores = table[table["label"] != "bias"].set_index("label")["score"].astype(float)
        if table.attrs["sums_to"] == "coefficient":  # the gate is held: what is shared out is the up projection
            up = table[table["label"] != "bias"].set_index("label")["up"].astype(float)
            assert (scores / up).std() < 1e-3 * abs((scores / up).mean())
        for name, share in (increase * scores / scores.sum()).items():
            total[name] = total.get(name, 0.0) + share
    return pd.Series(total)


@pytest.mark.parametrize(
    "family", ["llama", *zoo.slow("gpt2", "gemma2", "olmo2", "phi", "xglm", "granite", "gpt_neox_parallel")]
)
@pytest.mark.parametrize("kind", ["ffn_neurons", "attn_neurons"])
def test_query_scores(family: str, kind: str, tokens: torch.Tensor) -> None:
    """Every unit, for value neurons of all layers and, of attention, of several source positions."""
    trace = tlsv.trace(zoo.model(family), tokens, 5, position=4)
    values = getattr(trace, kind)(top=20)
    assert values["layer"].nunique() == 2
    for by, method in {**UNITS, "ffn_neuron": "query_ffn_neurons"}.items():
        expected = by_formula(trace, values, by)
        table = getattr(trace, method)(values)
        ours = table.set_index("label")["query_score"]
        assert table["query_score"].is_monotonic_decreasing
        assert table.attrs["left_out"] == []
        size = expected.abs().max()
        pattern = {"head": r"L\d+H\d+", "head_position": r"L\d+H\d+@\d+", "ffn_neuron": r"L\d+N\d+"}.get(by, ".*")
        expected = expected[expected.index.str.fullmatch(pattern)]
        assert set(ours.index) == set(expected.index)
        assert (ours - expected[ours.index]).abs().max() < 2e-4 * size


def test_suppressing_value_neurons_count_with_their_sign(tokens: torch.Tensor) -> None:
    """The lowest neurons have negative increases, and their query scores follow the formula too."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    values = trace.ffn_neurons(top=20, largest=False)
    assert (values["log_prob_increase"] < 0).all()
    ours = trace.query_layers(values).set_index("label")["query_score"]
    expected = by_formula(trace, values, "sublayer")
    assert (ours - expected).abs().max() < 2e-4 * expected.abs().max()


def test_tables_of_another_trace_are_refused(tokens: torch.Tensor) -> None:
    model = zoo.model("llama")
    batch = tlsv.trace_batch(model, [tokens[0], tokens[0].flip(0)], [5, 5])
    first, second = batch
    for table, message in ((first.ffn_neurons(5), "of another trace"), (batch.ffn_neurons(5), "several prompts")):
        with pytest.raises(ValueError, match=message):
            second.query_layers(table)
        with pytest.raises(ValueError, match=message):
            second.curve(table)
    assert len(first.query_layers(batch.ffn_neurons(5).query("prompt == 0"))) > 1


def test_something_unseen_in_the_residual_stream_is_refused(tokens: torch.Tensor) -> None:
    """What was added at another position than the trace's is found where value neurons read there."""
    model = zoo.model("llama")

    def edit(value: torch.Tensor, hook: object) -> torch.Tensor:
        value = value.clone()
        value[:, 2] += 1.0
        return value

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", edit)]):
        _, cache = model.run_with_cache(tokens)
    trace = tlsv.trace(model, tokens, 5, cache=cache)
    values = trace.attn_neurons(top=None).query("layer == 1 and position == 2").head(5)
    with pytest.raises(tlsv.UnsupportedModelError, match="not the sum of the earlier"):
        trace.query_layers(values)


@pytest.mark.parametrize(("times", "left_out"), [(0.999, ["L1N7"]), (1.001, [])])
def test_a_denominator_that_nearly_vanishes(times: float, left_out: list[str], tokens: torch.Tensor) -> None:
    """Just above the threshold a neuron counts, just below it is left out."""
    model = zoo.bridge("gpt2", dtype=torch.float64)
    block, read = model.original_model.transformer.h[1], tlsv.trace(model, tokens, 5).cache["blocks.1.hook_resid_mid"]
    weight, bias = block.mlp.c_fc.weight, block.mlp.c_fc.bias

    def scores() -> pd.Series:
        table = tlsv.trace(model, tokens, 5).activations("L1N7")
        return table[table["label"] != "bias"]["score"]

    with torch.no_grad():
        read = block.ln_2(read)[0, -1] - block.ln_2.bias
        bias[7] = 2.0
        weight[:, 7] -= (read @ weight[:, 7]) / (read @ read) * read  # reads nothing here
        weight[:, 7] += times * query.VANISHING * scores().abs().sum() / (read @ read) * read
    assert abs(scores().sum()) / scores().abs().sum() == pytest.approx(times * query.VANISHING, rel=1e-4)
    trace = tlsv.trace(model, tokens, 5)
    assert trace.query_layers(trace.ffn_neurons(top=None)).attrs["left_out"] == left_out
    assert 1e-6 < query.VANISHING < 1e-4


def test_shares_of_the_layers_add_up(tokens: torch.Tensor) -> None:
    """Over the embeddings and all sublayers, query scores add up to the value neurons' increases."""
    trace = tlsv.trace(zoo.model("gpt2"), tokens, 5)
    for values in (trace.ffn_neurons(top=30), trace.attn_neurons(top=30)):
        table = trace.query_layers(values)
        assert {"embed", "pos_embed", "0_attn_out", "0_mlp_out"} <= set(table["label"])
        assert table["query_score"].sum() == pytest.approx(values["log_prob_increase"].sum(), rel=1e-4)


def test_columns(tokens: torch.Tensor) -> None:
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    values = trace.ffn_neurons(top=10)
    assert list(trace.query_layers(values)) == ["label", "layer", "sublayer", "query_score"]
    assert list(trace.query_heads(values)) == ["label", "layer", "head", "query_score"]
    positions = trace.query_head_positions(values, top=4)
    assert list(positions) == ["label", "layer", "head", "position", "token", "query_score"]
    assert positions["token"].tolist() == [trace.str_tokens[p] for p in positions["position"]]
    neurons = trace.query_ffn_neurons(values, top=7)
    assert list(neurons) == ["label", "layer", "neuron", "query_score"]
    assert len(neurons) == 7
    assert len(trace.query_ffn_neurons(values, top=None)) > 7


def test_vanishing_denominators_are_named(tokens: torch.Tensor) -> None:
    """A neuron that reads nothing is left out by name, and the others are as if it had not been there."""
    model = zoo.bridge("gpt2")
    with torch.no_grad():
        model.original_model.transformer.h[1].mlp.c_fc.weight[:, 7] = 0.0
        model.original_model.transformer.h[1].mlp.c_fc.bias[7] = 2.0
    trace = tlsv.trace(model, tokens, 5)
    values = trace.ffn_neurons(top=None)
    assert "L1N7" in set(values["label"])
    table = trace.query_layers(values)
    assert table.attrs["left_out"] == ["L1N7"]
    pd.testing.assert_frame_equal(table, trace.query_layers(values[values["label"] != "L1N7"]))


def test_both_kinds_of_value_neurons_together(tokens: torch.Tensor) -> None:
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    ffn, attn = trace.ffn_neurons(top=5), trace.attn_neurons(top=5)
    both = trace.query_layers(pd.concat([ffn, attn], ignore_index=True)).set_index("label")["query_score"]
    apart = [trace.query_layers(one).set_index("label")["query_score"] for one in (ffn, attn)]
    pd.testing.assert_series_equal(both.sort_index(), apart[0].add(apart[1], fill_value=0.0).sort_index(), rtol=1e-4)


def test_refusals(tokens: torch.Tensor) -> None:
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    with pytest.raises(ValueError, match=r"values is a table of trace\.ffn_neurons"):
        trace.query_layers(["L1N5"])
    with pytest.raises(ValueError, match="no rows"):
        trace.query_layers(trace.ffn_neurons(top=5).head(0))
    with pytest.raises(ValueError, match="are of neurons"):
        trace.query_layers(trace.heads())
    with pytest.raises(ValueError, match="NaN"):
        trace.query_layers(trace.ffn_neurons(top=5).assign(log_prob_increase=float("nan")))
    with pytest.raises(ValueError, match="no number"):
        trace.query_layers(trace.ffn_neurons(top=5).assign(log_prob_increase="x"))
    with pytest.raises(ValueError, match="more than once"):
        trace.query_heads(pd.concat([trace.ffn_neurons(top=5)] * 2))
    with pytest.raises(ValueError, match="top is a positive number"):
        trace.query_ffn_neurons(trace.ffn_neurons(top=5), top=0)


@pytest.mark.hooked
@pytest.mark.parametrize("variant", ["ln_gelu", "rotary_gated_grouped", "parallel", "gemma2_like"])
def test_hooked_transformer(variant: str, tokens: torch.Tensor) -> None:
    trace = tlsv.trace(zoo.hooked(variant), tokens, 5)
    for kind in ("ffn_neurons", "attn_neurons"):
        values = getattr(trace, kind)(top=15)
        table = trace.query_layers(values)
        # A gate that is shut lets nothing through: such a neuron's coefficient is its bias alone.
        values = values[~values["label"].isin(table.attrs["left_out"])]
        assert len(values) >= 14
        assert table["query_score"].sum() == pytest.approx(values["log_prob_increase"].sum(), rel=1e-3)
        expected = by_formula(trace, values, "sublayer")
        assert (table.set_index("label")["query_score"] - expected).abs().max() < 2e-4 * expected.abs().max()
