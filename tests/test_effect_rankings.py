"""Rankings by total effects and integrated gradients, of FFN neurons, attention neurons and heads."""

from typing import Any

import jaxtyping
import pandas as pd
import pytest
import torch
from helpers import zoo
from helpers.facts import make_facts
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.study.effect_rankings import (
    integrated,
    integrated_at_positions,
    integrated_at_the_last,
    integrated_attn_neurons,
)
from tl_subvalues.study.ranked import ATTN_NEURONS, FFN_NEURONS, HEADS, Ranking
from tl_subvalues.study.rankings import chosen_rankings

pytestmark = pytest.mark.any_release

TARGET, POSITION = 17, 5
RULES = ("gradient", "frozen", "half")


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def trace(request: pytest.FixtureRequest, tokens: Tensor) -> tlsv.Trace:
    return tlsv.trace(zoo.model(request.param, dtype=torch.float64), tokens, TARGET, position=POSITION)


def neurons_of(trace: tlsv.Trace) -> list[str]:
    return sorted(trace.ffn_neurons(top=None)["label"], key=lambda label: [*map(int, label[1:].split("N"))])


def effects(trace: tlsv.Trace, unit: Any, rule: Any, **more: Any) -> pd.Series:
    return trace.effects(unit, top=None, rule=rule, **more).set_index("label")["total_effect"]


@pytest.mark.parametrize("rule", RULES)
def test_neurons_at_positions(trace: tlsv.Trace, rule: str) -> None:
    """All scores in order of positions, layers and neurons; the top by the table and by the scores are one."""
    ranking = tlsv.RANKINGS[f"total_effect_{rule}"]
    by_hand = effects(trace, "ffn_neuron", rule)
    names = [f"{label}@{at}" for at in range(POSITION + 1) for label in neurons_of(trace)]
    assert ranking(trace).tolist() == by_hand[names].tolist()
    best = torch.sort(ranking(trace), descending=True).indices[:40].tolist()
    assert ranking.top(trace, 40) == [names[number] for number in best]


@pytest.mark.parametrize("rule", RULES)
def test_neurons_summed_over_positions_and_at_the_last(trace: tlsv.Trace, rule: str) -> None:
    """Sums of the table's rows, and its rows at the last position alone."""
    table = effects(trace, "ffn_neuron", rule)
    sums = table.groupby(table.index.str.partition("@").get_level_values(0)).sum()
    assert tlsv.RANKINGS[f"total_effect_{rule}_summed"](trace).tolist() == pytest.approx(
        sums[neurons_of(trace)].tolist()
    )
    last = table[[f"{label}@{POSITION}" for label in neurons_of(trace)]].tolist()
    name = "gradient_times_activation" if rule == "gradient" else f"total_effect_{rule}_last"
    assert tlsv.RANKINGS[name](trace).tolist() == pytest.approx(last)
    assert all("@" not in label for label in tlsv.RANKINGS[name].top(trace, 5))


@pytest.mark.parametrize("rule", RULES)
def test_heads_and_attention_neurons(trace: tlsv.Trace, rule: str) -> None:
    """Heads wherever they add something; attention neurons from each source to the trace's position."""
    heads = effects(trace, "head", rule)
    sums = heads.groupby(heads.index.str.partition("@").get_level_values(0)).sum().sort_values(ascending=False)
    ranking = tlsv.RANKINGS[f"head_total_effect_{rule}"]
    assert ranking.top(trace, 99) == sums.index.tolist()
    assert sorted(ranking(trace).tolist(), reverse=True) == pytest.approx(sums.tolist())
    neurons = effects(trace, "attn_neuron", rule, positions="last")
    ranking = tlsv.RANKINGS[f"attn_neuron_total_effect_{rule}"]
    neurons.index = neurons.index.str.partition(">").get_level_values(0)
    assert ranking.top(trace, 30) == neurons.sort_values(ascending=False, kind="stable").index[:30].tolist()
    assert sorted(ranking(trace).tolist()) == pytest.approx(sorted(neurons.tolist()))
    assert Ranking(ranking.scores, of=ATTN_NEURONS).top(trace, 30) == ranking.top(trace, 30)
    own = tlsv.RANKINGS["attn_neuron_log_prob_increase"]
    assert ranking(trace).shape == own(trace).shape == (len(trace.attn_neurons(top=None)),)


@pytest.mark.parametrize("unit", ["attn_neuron", "head"])
@pytest.mark.parametrize("by", ["log_prob_increase", "prob_increase"])
def test_increases_of_heads_and_attention_neurons(trace: tlsv.Trace, unit: str, by: str) -> None:
    """The table's own order and values."""
    ranking = tlsv.RANKINGS[f"{unit}_{by}"]
    table = {"attn_neuron": trace.attn_neurons, "head": trace.heads}[unit](top=None)
    ordered = table.sort_values(by, ascending=False, kind="stable")
    assert ranking.top(trace, 7) == ordered["label"].tolist()[:7]
    assert sorted(ranking(trace).tolist(), reverse=True) == pytest.approx(ordered[by].tolist())


@pytest.mark.each_release
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "of", "sublayer"),
    [
        ("llama", FFN_NEURONS, "mlp"),
        ("gemma2", FFN_NEURONS, "mlp"),
        ("mixtral", FFN_NEURONS, "mlp"),
        ("llama", HEADS, "attn"),
        ("gemma2", HEADS, "attn"),
    ],
)
def test_integrated_gradients_add_up(family: str, of: Any, sublayer: str, tokens: Tensor) -> None:
    """To the measure less its value with all those outputs at zero, the better the finer the steps; experts' too.

    Heads of a mixture do not: a router that turns to other experts on the way makes a leap, which no gradient sees.
    """
    model = zoo.bridge(family)
    trace = tlsv.trace(model, tokens, TARGET, position=POSITION)
    names = [f"blocks.{layer}.hook_{sublayer}_out" for layer in range(2)]
    hooks = [(name, lambda value, hook: torch.zeros_like(value)) for name in names]
    without = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, POSITION].detach().log_softmax(-1)[TARGET]
    whole = trace.log_prob - float(without)
    errors = [abs(float(integrated(of, steps)(trace).sum()) - whole) for steps in (2, 128)]
    assert errors[1] < 2e-3 * max(1.0, abs(whole))
    assert errors[1] < errors[0]


@pytest.mark.each_release
def test_the_mean_gradient_by_hand(tokens: Tensor) -> None:
    """Two midpoints, autograd through a model whose FFN outputs are put in place; at each position and summed."""
    model = zoo.bridge("llama", dtype=torch.float64)
    trace = tlsv.trace(model, tokens, TARGET, position=POSITION)
    gradients = mean_gradients(model, tokens, "mlp")
    _, cache = model.run_with_cache(tokens)
    each = [cache[f"blocks.{layer}.mlp.hook_post"][0] for layer in range(2)]
    rows = [gradient @ model.blocks[layer].mlp.W_out.T for layer, gradient in enumerate(gradients)]
    expected = torch.stack([m * row for m, row in zip(each, rows, strict=True)], dim=1)  # [pos, layer, neuron]
    assert torch.allclose(integrated(FFN_NEURONS, 2)(trace), expected.sum(0).flatten(), atol=1e-9)
    assert torch.allclose(integrated_at_the_last(2)(trace), expected[POSITION].flatten(), atol=1e-9)
    at_positions = integrated_at_positions(2)
    assert torch.allclose(at_positions(trace), expected[: POSITION + 1].flatten(), atol=1e-9)
    best = int(expected[: POSITION + 1].flatten().argmax())
    at, layer, neuron = best // 96, best % 96 // 48, best % 48
    assert at_positions.top(trace, 1) == [f"L{layer}N{neuron}@{at}"]
    assert expected.abs().max() > 0.01


@pytest.mark.each_release
def test_the_mean_gradient_of_attention_by_hand(tokens: Tensor) -> None:
    """The same of heads, from every position, and of attention neurons at their sources, in the table's order."""
    model = zoo.bridge("llama", dtype=torch.float64)
    trace = tlsv.trace(model, tokens, TARGET, position=POSITION)
    gradients = mean_gradients(model, tokens, "attn")
    _, cache = model.run_with_cache(tokens)
    heads, neurons = [], {}
    for layer, gradient in enumerate(gradients):
        W_O, z = model.blocks[layer].attn.W_O, cache[f"blocks.{layer}.attn.hook_z"][0]
        inner = torch.stack([gradient @ own.T for own in W_O], dim=1)  # [pos, head, d_head]
        heads.append((z * inner).sum((0, 2)))
        values = cache[f"blocks.{layer}.attn.hook_v"][0]
        values = values.repeat_interleave(z.shape[1] // values.shape[1], dim=1)
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, POSITION]
        for head in range(z.shape[1]):
            for source in range(POSITION + 1):
                effects = pattern[head, source] * values[source, head] * inner[POSITION, head]
                neurons |= {f"L{layer}H{head}D{dim}@{source}": effects[dim].item() for dim in range(z.shape[2])}
    assert torch.allclose(integrated(HEADS, 2)(trace), torch.cat(heads), atol=1e-9)
    scores = integrated_attn_neurons(2)(trace)
    labels = ATTN_NEURONS.labels(trace, torch.arange(len(scores)))
    assert dict(zip(labels, scores.tolist(), strict=True)) == pytest.approx(neurons, abs=1e-9)
    assert max(neurons.values()) > 1e-3


def mean_gradients(model: Any, tokens: Tensor, sublayer: str) -> list[Tensor]:
    """Of the log-probability with respect to both layers' outputs, at a quarter and at three quarters of them."""
    _, cache = model.run_with_cache(tokens)
    names = [f"blocks.{layer}.hook_{sublayer}_out" for layer in range(2)]
    found = [torch.zeros_like(cache[name][0]) for name in names]
    for share in (0.25, 0.75):
        leaves = [(cache[name] * share).detach().requires_grad_() for name in names]
        hooks = [(name, lambda value, hook, leaf=leaf: leaf) for name, leaf in zip(names, leaves, strict=True)]
        model.run_with_hooks(tokens, fwd_hooks=hooks)[0, POSITION].log_softmax(-1)[TARGET].backward()
        for own, leaf in zip(found, leaves, strict=True):
            assert leaf.grad is not None
            own += leaf.grad[0] / 2
    return found


@pytest.mark.each_release
def test_integrated_gradients_of_another_run_are_refused(tokens: Tensor) -> None:
    """What was traced under a hook is no run of the plain model, whose gradients these are."""
    model = zoo.bridge("llama")
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda value, hook: value * 0.9)]):
        _, cache = model.run_with_cache(tokens)
    trace = tlsv.trace(model, tokens, TARGET, cache=cache)
    with pytest.raises(tlsv.UnsupportedModelError, match="ends elsewhere"):
        tlsv.RANKINGS["integrated_gradients"](trace)


def test_which_are_compared() -> None:
    """None stands for one unit's; a random one of each unit that is there; unknown units are refused."""
    assert {one.of.unit for one in chosen_rankings(None, 0).values()} == {"ffn_neuron"}
    heads = chosen_rankings(None, 0, unit="head")
    assert {one.of.unit for one in heads.values()} == {"head"}
    assert "head_random" in heads
    mixed = chosen_rankings(["head_log_prob_increase", "norm"], 0)
    assert list(mixed) == ["head_log_prob_increase", "norm", "random", "head_random"]
    assert "head_prob_increase" not in chosen_rankings(None, 0, "log_prob_diff", "head")


def test_an_unknown_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by name."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="unit is one of 'ffn_neuron', 'attn_neuron', 'head', got 'layer'"):
        chosen_rankings(None, 0, unit="layer")  # type: ignore[arg-type]


@pytest.mark.slow
def test_evaluate_ablates_where_the_label_says() -> None:
    """Neurons at positions, attention neurons and heads, against `ablate` fact by fact."""
    model, facts = zoo.model("llama"), make_facts(1)
    names = ["total_effect_gradient", "attn_neuron_total_effect_frozen", "head_total_effect_gradient"]
    table = tlsv.evaluate(model, facts, rankings=names, ks=[3], prepend_bos=False).set_index("ranking")
    trace = tlsv.trace(model, facts["prompt"][0], facts["target"][0], prepend_bos=False)
    for name in names:
        expected = trace.ablate(tlsv.RANKINGS[name].top(trace, 3))["log_prob_after"]
        assert table.loc[name, "log_prob_after"] == pytest.approx(expected, abs=1e-5)
    assert table["log_prob_after"].nunique() > 3
    assert set(tlsv.evaluate(model, facts, unit="head", ks=[2], prepend_bos=False)["ranking"]) == {
        name for name in tlsv.RANKINGS if name.startswith("head_")
    }
