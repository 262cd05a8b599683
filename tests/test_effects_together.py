"""Effects and rankings of several prompts at once are those of one at a time, in few passes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view.view import ModelView
from tl_subvalues.tracing import batch as together
from tl_subvalues.upstream import gradient

pytestmark = pytest.mark.few_families

PROMPTS = ["w3 w4 w5 w6", "w7", "w8 w9 w10 w11 w12 w13", "w14 w15 w16 w17"]
TARGETS = ["w5", 6, "w7", "w8"]
FAMILIES = ["llama", "gpt2", "bloom", "gptj", "gemma2", "mixtral", "opt", "qwen2_moe"]
if not zoo.has_hooked_transformer():
    FAMILIES.append("granite")  # of which older releases show copies, which no gradient reaches


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each forward pass for gradients had."""
    seen: list[int] = []
    run = ModelView.logits_together

    def counted(self: ModelView, prompts: Sequence[torch.Tensor], *rest: Any) -> Any:
        seen.append(len(prompts))
        return run(self, prompts, *rest)

    monkeypatch.setattr(ModelView, "logits_together", counted)
    return seen


def assert_same_effects(family: str, unit: str, rule: str) -> None:
    batch = tlsv.trace_batch(zoo.model(family), PROMPTS, TARGETS, prepend_bos=False, batch_size=3)
    together = batch.effects(unit, rule=rule, top=None)
    assert len(together.attrs["score"]) == len(together.attrs["direct_left_out"]) == len(PROMPTS)
    for number, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        alone = tlsv.trace(zoo.model(family), prompt, target, prepend_bos=False).effects(unit, rule=rule, top=None)
        assert together.attrs["score"][number] == pytest.approx(alone.attrs["score"], abs=1e-4)
        own = together[together["prompt"] == number].set_index("label").loc[alone["label"]]
        assert len(own) == len(alone)
        for column in ("direct_effect", "total_effect"):
            assert own[column].to_numpy() == pytest.approx(alone[column].to_numpy(), abs=1e-5)
        assert own["sink"].tolist() == alone["sink"].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family(family: str, passes: list[int]) -> None:
    """Padded on the left, mixtures of experts too: neurons and heads at all positions."""
    for unit in ("ffn_neuron", "head_position"):
        assert_same_effects(family, unit, "gradient")
    assert passes == [3, 1, *[1] * 4] * 2


@pytest.mark.parametrize("unit", ["sublayer", "attn_neuron", "embedding"])
@pytest.mark.parametrize("rule", ["gradient", "frozen", "half"])
def test_of_other_units_and_rules(unit: str, rule: str) -> None:
    """Rules of the frozen model are led back one by one."""
    assert_same_effects("llama", unit, rule)


def test_what_cannot_be_padded_is_run_alone(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mask is not heeded, the padded pass ends elsewhere than the runs, and nothing of it is used."""
    model = zoo.model("gpt2")
    run = type(model).run_with_hooks

    def forgets_the_mask(self: object, tokens: torch.Tensor, **keywords: object) -> object:
        keywords.pop("attention_mask", None)
        return run(self, tokens, **keywords)

    traces = [tlsv.trace(model, p, t, prepend_bos=False) for p, t in zip(PROMPTS, TARGETS, strict=True)]
    expected = [trace.effects(top=None)["total_effect"].to_numpy() for trace in traces]
    monkeypatch.setattr(type(model), "run_with_hooks", forgets_the_mask)
    passes.clear()
    found = tlsv.TraceBatch(tuple(traces)).effects(top=None)
    assert passes == [4, 1, 1, 1, 1]
    for number, own in enumerate(expected):
        assert np.array_equal(found[found["prompt"] == number]["total_effect"].to_numpy(), own)


def test_few_tokens_a_pass(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory grows with the tokens of a pass, padding counted."""
    batch = tlsv.trace_batch(zoo.model("llama"), PROMPTS, TARGETS, prepend_bos=False)
    cfg = zoo.model("llama").cfg
    token, logits, patterns = 21 * cfg.n_layers * cfg.d_model, 2 * cfg.d_vocab, cfg.n_layers * cfg.n_heads * 10**2
    monkeypatch.setattr(gradient, "_BYTES", 4 * 2 * (10 * token + 2 * patterns + logits))
    batch.effects(top=3)
    assert passes == [2, 2]


@pytest.mark.parametrize("name", [name for name in tlsv.RANKINGS if "integrated" not in name])
def test_every_ranking_of_several_traces(name: str) -> None:
    """The tops of a batch are each trace's own; near ties aside, which padding may turn."""
    ranking = tlsv.RANKINGS[name]
    batch = tlsv.trace_batch(zoo.model("llama"), PROMPTS, TARGETS, prepend_bos=False)
    for trace, prompt, target, top in zip(batch, PROMPTS, TARGETS, ranking.tops(list(batch), 9), strict=True):
        alone = tlsv.trace(zoo.model("llama"), prompt, target, prepend_bos=False)
        of, scores = ranking.of, ranking(alone).double()
        labels = of.labels(alone, torch.arange(of.count(alone)))
        known = dict(zip(labels, scores.tolist(), strict=True))
        assert len(set(top)) == len(top) == min(9, len(labels))
        assert [known[label] for label in top] == pytest.approx(
            sorted(known.values(), reverse=True)[: len(top)], abs=1e-5
        )
        assert top == ranking.top(trace, 9)


def test_evaluate_shares_passes(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward and backward pass a batch, one product for all distributions, and the same table."""
    facts = pd.DataFrame({"prompt": PROMPTS, "target": ["w5", "w6", "w7", "w8"]})
    made = []
    read = together.read_together
    monkeypatch.setattr(together, "read_together", lambda wanted: made.append(len(wanted)) or read(wanted))
    names = ["log_prob_increase", "prob_increase", "gradient_times_activation", "random"]
    how = {"rankings": names, "ks": [3, 9], "prepend_bos": False}
    table = tlsv.evaluate(zoo.model("llama"), facts, batch_size=4, **how)
    assert (made, passes) == ([4], [4])
    alone = tlsv.evaluate(zoo.model("llama"), facts, batch_size=1, **how)
    assert passes == [4, 1, 1, 1, 1]
    pd.testing.assert_frame_equal(table, alone, rtol=1e-4, atol=1e-5)


def test_other_scores_in_a_ranking_are_heeded() -> None:
    """Who replaces the scores of one of ours is not led past them, in a batch either."""
    facts = pd.DataFrame({"prompt": PROMPTS, "target": ["w5", "w6", "w7", "w8"]})
    for name in ("gradient_times_activation", "head_total_effect_gradient", "total_effect_half_last"):
        ours = tlsv.RANKINGS[name]
        turned = replace(ours, scores=lambda trace, ours=ours: -ours(trace))
        rankings = {"turned": turned, "plain": ours}
        table = tlsv.evaluate(zoo.model("llama"), facts, rankings=rankings, ks=[3], prepend_bos=False)
        after = table.set_index("ranking")["log_prob_after"]
        assert abs(after["turned"] - after["plain"]) > 1e-3
        batch = tlsv.trace_batch(zoo.model("llama"), PROMPTS, TARGETS, prepend_bos=False)
        assert turned.tops(list(batch), 4) == [turned.top(trace, 4) for trace in batch]


def test_what_does_not_fit_together_is_run_alone(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no memory for a batch's forward pass, prompts go one by one."""
    batch = tlsv.trace_batch(zoo.model("llama"), PROMPTS, TARGETS, prepend_bos=False)
    expected = batch.effects(top=3)
    run = ModelView.logits_together

    def small(self: ModelView, prompts: Sequence[torch.Tensor], *rest: Any) -> Any:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, prompts, *rest)

    passes.clear()
    monkeypatch.setattr(ModelView, "logits_together", small)
    found = batch.effects(top=3)
    assert passes == [1] * 4
    assert found["label"].tolist() == expected["label"].tolist()
    assert found["total_effect"].to_numpy() == pytest.approx(expected["total_effect"].to_numpy(), abs=1e-5)
