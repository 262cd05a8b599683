"""Mixtures of experts in every family that is covered, in both modes, against formulas written by hand."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
from helpers import zoo
from helpers.brute_experts import BruteForceMixture
from helpers.comparison import INCREASE_TOLERANCE, MIDDLE, SUM_TOLERANCE, TARGET, UNITS, relative_error

import tl_subvalues as tlsv
from tl_subvalues.model_view import view_of

MODES = [pytest.param(False, id="default"), pytest.param(True, id="compat")]


@pytest.fixture(scope="module", params=list(zoo.MIXTURES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=MODES)
def run(family: str, request: pytest.FixtureRequest, tokens: torch.Tensor) -> tuple[Any, BruteForceMixture, Any]:
    if family == "ernie4_5_moe" and request.param and zoo.has_hooked_transformer():
        pytest.skip("TransformerLens 3.9 cannot enable compatibility mode where dense layers and mixtures alternate so")
    model = zoo.bridge(family, compatibility=request.param)
    return model, BruteForceMixture(model, family, tokens, folded=request.param), model.run_with_cache(tokens)[1]


def test_neurons_sum_to_what_enters_the_residual_stream(run):
    """The neurons of all experts in use and the bias part add up, at one position and at all of them."""
    model, _, cache = run
    for layer in range(len(model.blocks)):
        whole = cache[f"blocks.{layer}.hook_mlp_out"].double()
        last = tlsv.ffn_subvalues(model, cache, layer, incl_bias=True)
        everywhere = tlsv.ffn_subvalues(model, cache, layer, incl_bias=True, pos_slice=None)
        assert relative_error(last.sum(0), whole[:, -1]) < SUM_TOLERANCE
        assert relative_error(everywhere.sum(0), whole) < SUM_TOLERANCE
        for by in ("head", "head_position", "neuron"):
            stack = tlsv.attn_subvalues(model, cache, layer, by=by, incl_bias=True, pos_slice=None)
            assert relative_error(stack.sum(0), cache[f"blocks.{layer}.hook_attn_out"].double()) < SUM_TOLERANCE


def test_each_part_is_the_vector_that_its_label_names(run):
    """Just the neurons of experts in use, each with the vector that the family's formula gives."""
    model, expected, cache = run
    for layer in range(len(model.blocks)):
        for position in (MIDDLE, expected.n_positions - 1):
            stack, labels = tlsv.ffn_subvalues(
                model, cache, layer, pos_slice=position, incl_bias=True, return_labels=True
            )
            wanted = expected.parts("ffn_neuron", layer, position)
            wanted[f"{layer}_mlp_bias"] = expected.bias(layer, "mlp", position)
            assert sorted(labels) == sorted(wanted)
            vectors = torch.stack([wanted[label] for label in labels])
            largest = expected.output(layer, "mlp", position).abs().max()
            assert float((stack[:, 0].double() - vectors).abs().max() / largest) < SUM_TOLERANCE


@pytest.mark.parametrize(("scale", "position"), [("frozen", -1), ("recomputed", MIDDLE)])
def test_increases_equal_brute_force(run, tokens, scale, position):
    """Every table, that of dense and expert neurons together too, has the labels and increases of brute force."""
    model, reference, _ = run
    trace = tlsv.trace(model, tokens, TARGET, scale=scale, position=position)
    for unit, table_of in UNITS.items():
        table = table_of(trace)
        expected = reference.increases(unit, position % tokens.shape[1], TARGET, scale)
        assert sorted(table.label) == sorted(expected)
        wanted = torch.tensor([expected[label] for label in table.label], dtype=torch.float64)
        found = torch.tensor(table[["log_prob_increase", "prob_increase"]].to_numpy(dtype=float))
        assert torch.allclose(found, wanted, rtol=0, atol=INCREASE_TOLERANCE)
    for largest in (True, False):
        top = trace.ffn_neurons(top=7, largest=largest)
        whole = trace.ffn_neurons(top=None, largest=largest)
        assert list(top.label) == list(whole.label[:7])


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4", "deepseek_v3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_route_as_the_model_does(family, dtype, tokens):
    """Routing is computed in the model's dtype, so the same experts are in use; sums hold within its rounding."""
    model = zoo.bridge(family, dtype=dtype)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-6}[dtype]
    trace = tlsv.trace(model, tokens, TARGET)
    assert trace.ffn_neurons(top=5).log_prob_increase.notna().all()
    for layer in range(2):
        stack = tlsv.ffn_subvalues(model, trace.cache, layer, pos_slice=None, incl_bias=True)
        assert stack.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert relative_error(stack.sum(0), trace.cache[f"blocks.{layer}.hook_mlp_out"].double()) < tolerance


def test_columns_of_a_mixture(tokens):
    """Tables of a model with mixtures have a column `expert`, missing in dense layers; other models have none."""
    trace = tlsv.trace(zoo.bridge("deepseek_v3"), tokens, TARGET)
    table = trace.ffn_neurons(top=None)
    assert list(table.columns[:5]) == ["label", "layer", "expert", "neuron", "coefficient"]
    assert table.expert.isna().equals(table.layer == 0)
    for row in table.itertuples():
        dense = row.layer == 0
        assert row.label == (f"L0N{row.neuron}" if dense else f"L{row.layer}E{row.expert}N{row.neuron}")
    assert set(table.expert.dropna()) <= set(range(9))
    assert 8 in set(table.expert.dropna())  # the shared expert, after the eight routed ones
    assert "expert" not in tlsv.trace(zoo.bridge("llama"), tokens, TARGET).ffn_neurons(top=3)
    for largest in (True, False):
        table = trace.ffn_neurons(top=None, largest=largest)
        for top in (1, 2):  # of one layer
            few = trace.ffn_neurons(top=top, largest=largest)
            assert list(few.columns) == list(table.columns)
            assert few.dtypes["expert"] == table.dtypes["expert"]
            assert few["expert"].isna().tolist() == table["expert"].isna().tolist()[:top]


def test_vocabulary_reads_the_row_of_any_expert(tokens):
    """A neuron's words are its row's, whether the token is sent to its expert or not."""
    model = zoo.bridge("mixtral")
    trace = tlsv.trace(model, tokens, TARGET)
    W_out = model.blocks[0].mlp.original_component.experts.down_proj.detach()
    for expert in range(4):
        found = trace.vocabulary(f"L0E{expert}N5", k=3)
        values = trace.readout.bs_values(W_out[expert, :, 5][None])[0]
        assert list(found.bs_value[:3]) == pytest.approx(values.topk(3).values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("family", "label", "message"),
    [
        ("mixtral", "L0N5", "L3E5N10"),
        ("mixtral", "L0E4N5", "expert 4 is not below 4"),
        ("mixtral", "L0E3N48", "neuron 48 is not below 48"),
        ("llama", "L0E0N5", "dense"),
    ],
)
def test_labels_of_the_other_kind_are_refused(family, label, message, tokens):
    """A neuron of a mixture needs an expert, one of a dense layer has none."""
    trace = tlsv.trace(zoo.bridge(family), tokens, TARGET)
    with pytest.raises(ValueError, match=message) as caught:
        trace.vocabulary(label)
    assert repr(label) in str(caught.value)


def test_neuron_slices_are_of_each_expert(tokens):
    """`neuron_slice` picks the same neurons of every expert, with the vectors that they have in the whole."""
    model = zoo.bridge("qwen2_moe")
    _, cache = model.run_with_cache(tokens)
    whole, names = tlsv.ffn_subvalues(model, cache, 0, return_labels=True)
    some, labels = tlsv.ffn_subvalues(model, cache, 0, neuron_slice=[3, 7], return_labels=True)
    assert labels == [name for name in names if name.endswith(("N3", "N7"))]
    assert torch.equal(some, whole[[names.index(label) for label in labels]])


def test_several_prompts_at_once(tokens):
    """Padding, latent attention's head-first values, and each prompt's own experts: as if traced alone."""
    model = zoo.bridge("deepseek_v3")
    prompts = [tokens[0], tokens[0, 2:], tokens[0].flip(0)]
    batch = tlsv.trace_batch(model, prompts, [TARGET, 5, 9])
    for top in (None, 6):
        tables = batch.ffn_neurons(top=top).groupby("prompt")
        for number, (prompt, target) in enumerate(zip(prompts, (TARGET, 5, 9), strict=True)):
            alone = tlsv.trace(model, prompt, target).ffn_neurons(top=top)
            found = tables.get_group(number)
            assert list(found.label) == list(alone.label)
            assert list(found.log_prob_increase) == pytest.approx(list(alone.log_prob_increase), abs=1e-4)
    assert len(batch.attn_neurons(top=None)) > 0


def test_edited_routing_is_refused(tokens):
    """A run whose routing was edited by a hook is not what the router says: refused, never decomposed wrong."""
    model = zoo.bridge("mixtral")

    def reversed_experts(output, hook):
        return output.flip(-1)

    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_out", reversed_experts)]):
        _, cache = model.run_with_cache(tokens)
    with pytest.raises(tlsv.UnsupportedModelError, match=r"layer 0 .*experts"):
        tlsv.trace(model, tokens, TARGET, cache=cache)
    with pytest.raises(tlsv.UnsupportedModelError, match=r"layer 0 .*experts"):
        tlsv.ffn_subvalues(model, cache, 0)


def test_changed_experts_are_noticed(tokens):
    """Tables are made of weights and activations; a trace refuses when an expert's weights have changed since."""
    model = zoo.bridge("mixtral")
    trace = tlsv.trace(model, tokens, TARGET)
    with torch.no_grad():
        model.blocks[0].mlp.original_component.experts.down_proj.mul_(1.1)
    with pytest.raises(ValueError, match="have changed"):
        trace.ffn_neurons()


def test_the_view_gives_each_experts_weights(tokens):
    """Weights, routing and activations of the view give the sublayer's output back, by the definition of each."""
    for family in ("qwen2_moe", "gpt_oss", "llama4", "ernie4_5_moe"):
        model = zoo.bridge(family)
        _, cache = model.run_with_cache(tokens)
        mixture = view_of(model).layer(1).mixture()
        x = cache["blocks.1.mlp.hook_in"][0]
        weights = mixture.weights(x, torch.float32)
        assert weights.shape == (7, len(mixture))
        total = torch.zeros_like(x)
        for number in range(len(mixture)):
            expert, weight = mixture.expert(number), weights[:, number]
            inside = mixture.weighs_input and number < mixture.n_routed
            read = x * weight[:, None] if inside else x
            gate, up = read @ expert.W_gate, read @ expert.W_in
            gate = gate if expert.b_gate is None else gate + expert.b_gate
            up = up if expert.b_in is None else up + expert.b_in
            both = mixture.pre_activations(number, x, weight)
            torch.testing.assert_close(both, (gate, up), atol=1e-5, rtol=1e-4)
            out = mixture.activate(number, gate, up) @ expert.W_out
            out = out if expert.b_out is None else out + expert.b_out
            total += out if inside else out * weight[:, None]
        torch.testing.assert_close(total, cache["blocks.1.hook_mlp_out"][0], atol=1e-4, rtol=1e-4)


def test_sinks_in_compatibility_mode_are_warned_of(tokens):
    """Folded value biases change a model with sinks: said so, and what the warning advises keeps the numbers."""
    raw = tlsv.trace(zoo.bridge("gpt_oss"), tokens, TARGET)
    model = zoo.bridge("gpt_oss", compatibility=True)
    with pytest.warns(UserWarning, match="sinks") as caught:
        changed = tlsv.trace(model, tokens, TARGET)
    assert "fold_value_biases=False" in str(caught[0].message)
    assert abs(changed.log_prob - raw.log_prob) > 1e-2
    model = zoo.bridge("gpt_oss")
    with contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.enable_compatibility_mode(fold_value_biases=False)
        assert tlsv.trace(model, tokens, TARGET).log_prob == pytest.approx(raw.log_prob, abs=1e-4)


def test_ablating_is_clearing_the_row(family: str, tokens: torch.Tensor) -> None:
    """Neurons of two experts ablated give the logits of a model whose W_out rows of theirs are zero."""
    model = zoo.bridge(family)
    trace = tlsv.trace(model, tokens, TARGET)
    table = trace.ffn_neurons(top=None)
    table = table[table["expert"].notna()] if "expert" in table else table
    labels = table.groupby("expert").head(2)["label"].tolist()[:5]
    logits = model.run_with_hooks(tokens, fwd_hooks=tlsv.ablation_hooks(model, labels))
    half = model.run_with_hooks(tokens, fwd_hooks=tlsv.ablation_hooks(model, labels, mode=0.5))
    here = model.run_with_hooks(tokens, fwd_hooks=tlsv.ablation_hooks(model, labels, position=-1))
    plain = model(tokens)
    view = view_of(model)
    with torch.no_grad():
        for label in labels:
            layer, expert, neuron = (int(n) for n in label[1:].replace("E", " ").replace("N", " ").split())
            view.layer(layer).mixture().expert(expert).W_out[neuron] = 0.0  # a view of the model's own weights
    cleared = model(tokens)
    assert (plain - cleared).abs().max() > 1e-3
    assert torch.allclose(logits, cleared, atol=2e-4)
    assert not torch.allclose(half, cleared, atol=1e-4)
    assert torch.allclose(here[:, :-1], plain[:, :-1], atol=1e-5)
    assert not torch.allclose(here[:, -1], plain[:, -1], atol=1e-4)


def test_ablation_refusals(tokens: torch.Tensor) -> None:
    model = zoo.bridge("mixtral")
    for labels, message in (
        ("L0N3", "called as L3E5N10"),
        ("L0E9N3", "there is no expert 9"),
        ("L0E1N999", "neuron 999 is not below"),
    ):
        with pytest.raises(ValueError, match=message):
            tlsv.ablation_hooks(model, labels)
    with pytest.raises(ValueError, match="not for neurons of experts"):
        tlsv.ablation_hooks(model, "L0E1N3", mode="mean", reference=[tokens])
    with pytest.raises(ValueError, match="dense FFN"):
        tlsv.ablation_hooks(zoo.bridge("llama"), "L0E1N3")
    before_and_after = tlsv.trace(model, tokens, TARGET).ablate("L0E1N3")
    assert before_and_after["log_prob_before"] == pytest.approx(tlsv.trace(model, tokens, TARGET).log_prob, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt_oss", "qwen2_moe", "deepseek_v3"])
def test_scores_against_the_neurons_of_experts_add_up(family, tokens):
    """What switched an attention neuron on, by FFN neurons: experts' neurons and their bias part are among the rows."""
    if family == "deepseek_v3":
        trace = tlsv.trace(zoo.bridge(family), tokens, TARGET)
        with pytest.raises(tlsv.UnsupportedModelError, match="latent attention"):
            trace.activations("L1H0D0@6")
        return
    trace = tlsv.trace(zoo.bridge(family), tokens, TARGET)
    whole = trace.activations("L1H0D0@6")
    table = trace.activations("L1H0D0@6", by="ffn_neuron")
    assert table.score.sum() == pytest.approx(whole.score.sum(), abs=1e-4)
    experts = [label for label in table.label if label.startswith("L0E")]
    assert sorted(experts) == sorted(trace.ffn_neurons(top=None).query("layer == 0").label)
    assert ("0_mlp_bias" in set(table.label)) == (family == "gpt_oss")
    values = trace.attn_neurons(top=None).query("layer == 1 and position == 6").head(5)
    queries = trace.query_ffn_neurons(values, top=4)
    assert list(queries.columns) == ["label", "layer", "expert", "neuron", "query_score"]
    assert set(queries.label) <= set(experts)


def test_curves_add_the_neurons_of_experts(tokens):
    """A curve's steps are the experts' subvalues; all neurons and the bias of the last layer lead to the output."""
    trace = tlsv.trace(zoo.bridge("mixtral"), tokens, TARGET)
    last = trace.ffn_neurons(top=None).query("layer == 1")
    curve = trace.curve(last)
    assert list(curve.label[1:]) == list(last.label)
    assert curve.log_prob.iloc[-1] == pytest.approx(trace.log_prob, abs=1e-4)


def test_scores_of_idle_experts_are_refused(tokens):
    """A neuron of an expert that the token is not sent to was not switched on; a dense layer has no experts."""
    trace = tlsv.trace(zoo.bridge("mixtral"), tokens, TARGET)
    idle = next(f"L1E{e}N0" for e in range(4) if f"L1E{e}N0" not in set(trace.ffn_neurons(top=None).label))
    with pytest.raises(ValueError, match="is not active here"):
        trace.curve([idle])
    with pytest.raises(ValueError, match="is not active here"):
        trace.activations(idle)
    with pytest.raises(ValueError, match="dense"):
        tlsv.trace(zoo.bridge("llama"), tokens, TARGET).activations("L1E0N3")
