"""Hybrids: attention and FFN layers decomposed, what stands in attention's place as one named component."""

from typing import Any

import pytest
import torch
from helpers import zoo
from helpers.brute_experts import GATED, BruteForceMixture
from helpers.comparison import INCREASE_TOLERANCE, SUM_TOLERANCE, TARGET, relative_error

import tl_subvalues as tlsv

# What each layer has, in order of computation.
SUBLAYERS = {
    "lfm2": [["conv", "mlp"], ["attn", "mlp"]],
    "lfm2_moe": [["conv", "mlp"], ["attn", "mlp"]],
    "jamba": [["mixer", "mlp"], ["attn", "mlp"]],
    "bamba": [["mixer", "mlp"], ["attn", "mlp"]],
    "olmo_hybrid": [["linear_attn", "mlp"], ["attn", "mlp"]],
    "qwen3_next": [["linear_attn", "mlp"], ["attn", "mlp"]],
    "falcon_h1": [["attn", "mamba", "mlp"], ["attn", "mamba", "mlp"]],
}
MODES = [(family, mode) for family in SUBLAYERS for mode in (False, True)]
MODES.remove(("falcon_h1", True))  # TransformerLens fails to fold its norms
if zoo.has_hooked_transformer():  # TransformerLens 3.9 has no residual stream between OLMo Hybrid's sublayers
    MODES = [mode for mode in MODES if mode[0] != "olmo_hybrid"]


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: f"{mode[0]}-{'compat' if mode[1] else 'default'}")
def run(request: pytest.FixtureRequest, tokens: torch.Tensor) -> tuple[str, Any, BruteForceMixture, Any]:
    family, compatibility = request.param
    model = zoo.bridge(family, compatibility=compatibility)
    reference = BruteForceMixture(model, family, tokens, folded=compatibility)
    return family, model, reference, model.run_with_cache(tokens)[1]


def test_layers_are_the_residual_streams_steps(run, tokens):
    """`layers` lists every sublayer in order; each one's increase is that of the step in the residual stream."""
    family, model, reference, cache = run
    table = tlsv.trace(model, tokens, TARGET).layers()
    names = [(layer, name) for layer, those in enumerate(SUBLAYERS[family]) for name in those]
    assert list(table.label) == [f"{layer}_{name}_out" for layer, name in names]
    assert list(zip(table.layer, table.sublayer, strict=True)) == names
    for row in table.itertuples():
        before = cache[f"blocks.{row.layer}.hook_resid_pre"][0, -1].double()
        mid = cache[f"blocks.{row.layer}.hook_resid_mid"][0, -1].double()
        after = cache[f"blocks.{row.layer}.hook_resid_post"][0, -1].double()
        if row.sublayer == "mlp":
            x, step = mid, after - mid
        elif len(SUBLAYERS[family][row.layer]) == 2:
            x, step = before, mid - before
        else:
            attn = cache[f"blocks.{row.layer}.hook_attn_out"][0, -1].double()
            x, step = before, attn if row.sublayer == "attn" else mid - before - attn
        log_probs = reference.log_probs(torch.stack([x, x + step]), tokens.shape[1] - 1, "frozen")[:, TARGET]
        assert row.log_prob_increase == pytest.approx(float(log_probs[1] - log_probs[0]), abs=INCREASE_TOLERANCE)


def test_attention_and_ffn_layers_are_decomposed(run, tokens):
    """Heads, heads by source, attention neurons and FFN neurons, experts' too, sum up and score as by brute force."""
    family, model, reference, cache = run
    trace = tlsv.trace(model, tokens, TARGET)
    tables = {"head": trace.heads(), "ffn_neuron": trace.ffn_neurons(top=None)}
    if family not in GATED:
        tables |= {"head_position": trace.head_positions(), "attn_neuron": trace.attn_neurons(top=None)}
    for unit, table in tables.items():
        expected = reference.increases(unit, tokens.shape[1] - 1, TARGET, "frozen")
        assert sorted(table.label) == sorted(expected)
        wanted = [expected[label][0] for label in table.label]
        assert list(table.log_prob_increase) == pytest.approx(wanted, abs=INCREASE_TOLERANCE)
    for layer, names in enumerate(SUBLAYERS[family]):
        stack = tlsv.ffn_subvalues(model, cache, layer, incl_bias=True, pos_slice=None)
        assert relative_error(stack.sum(0), cache[f"blocks.{layer}.hook_mlp_out"].double()) < SUM_TOLERANCE
        if "attn" not in names:
            with pytest.raises(tlsv.UnsupportedModelError, match=f"layer {layer} has no attention"):
                tlsv.attn_subvalues(model, cache, layer)
            continue
        for by in ("head",) if family in GATED else ("head", "head_position", "neuron"):
            stack = tlsv.attn_subvalues(model, cache, layer, by=by, incl_bias=True, pos_slice=None)
            assert relative_error(stack.sum(0), cache[f"blocks.{layer}.hook_attn_out"].double()) < SUM_TOLERANCE


def test_gated_attention_is_not_told_apart_by_source(tokens):
    """Where a gate acts on z, source positions are refused by name, whoever asks; heads work, as the message says."""
    model = zoo.bridge("qwen3_next")
    trace = tlsv.trace(model, tokens, TARGET)
    for ask in (trace.head_positions, trace.attn_neurons, lambda: trace.vocabulary("L1H0@2")):
        with pytest.raises(tlsv.UnsupportedModelError, match=r"Qwen3Next.* layer 1.*trace.heads\(\)"):
            ask()
    for by in ("head_position", "neuron"):
        with pytest.raises(tlsv.UnsupportedModelError, match="layer 1"):
            tlsv.attn_subvalues(model, trace.cache, 1, by=by)
    assert len(trace.heads()) == 4


def test_a_mixers_words_are_those_of_its_output(tokens):
    """`vocabulary` reads a mixer as it reads any sublayer."""
    trace = tlsv.trace(zoo.bridge("lfm2"), tokens, TARGET)
    found = trace.vocabulary("0_conv_out", k=3)
    step = trace.cache["blocks.0.hook_resid_mid"][0, -1] - trace.cache["blocks.0.hook_resid_pre"][0, -1]
    assert list(found.bs_value[:3]) == pytest.approx(trace.readout.bs_values(step).topk(3).values.tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="has no conv sublayer"):
        trace.vocabulary("1_conv_out")


def test_a_mixer_that_does_not_add_up_is_refused(tokens):
    """A mixer's output is checked to be its step in the residual stream."""
    model = zoo.bridge("lfm2")
    with (
        model.hooks(fwd_hooks=[("blocks.0.hook_resid_mid", lambda x, hook: x * 1.5)]),
        pytest.raises(tlsv.UnsupportedModelError, match=r"resid_pre \+ conv_out is not resid_mid"),
    ):
        tlsv.trace(model, tokens, TARGET)


@pytest.mark.hooked  # that is, on TransformerLens 3.9
def test_a_block_without_a_residual_stream_in_the_middle_is_refused(tokens):
    """A sequential block must show what its FFN reads; it is not taken for a parallel one."""
    with pytest.raises(tlsv.UnsupportedModelError, match=r"OlmoHybrid.*blocks.0.hook_resid_mid"):
        tlsv.trace(zoo.bridge("olmo_hybrid"), tokens, TARGET)


@pytest.mark.parametrize("family", ["lfm2", "jamba"])
def test_an_ablated_mixer_adds_nothing(family, tokens):
    """With the mixer's output at zero, what enters the layer is what its FFN reads."""
    model = zoo.bridge(family)
    label = next(
        label for label in tlsv.trace(model, tokens, 5).layers()["label"] if label in ("0_conv_out", "0_mixer_out")
    )
    seen = {}

    def see(value, hook):
        seen[hook.name] = value.clone()

    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid"]
    model.run_with_hooks(tokens, fwd_hooks=[*tlsv.ablation_hooks(model, label), *((name, see) for name in names)])
    first, second = seen.values()
    assert len(seen) == 2
    assert torch.allclose(first, second, atol=1e-6)
