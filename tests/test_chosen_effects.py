"""Total effects of named components: those of `effects`, in one pass; reports show them beside the increases."""

import json
import re
from typing import Any

import pytest
from helpers import zoo
from rich.console import Console
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.command import report, screen
from tl_subvalues.labels import parse_label
from tl_subvalues.upstream import chosen, gradient

pytestmark = pytest.mark.any_release

UNITS = ("sublayer", "head", "head_position", "attn_neuron", "ffn_neuron")
# Before release 4, hybrids' sources are not all there, and outputs are shown that nothing follows from.
FAMILIES = ("gpt2", "llama", "gemma3", "gpt_neox_parallel", "mixtral", "qwen2_moe")
COPIED = {"granite", "granitemoe"} if zoo.has_hooked_transformer() else set()
COMPONENTS = ("layers", "heads", "head_positions", "ffn_neurons", "attn_neurons", "query_ffn_neurons")


def at_the_end(label: str, unit: str) -> str:
    """A label of `effects` without the position where it is added."""
    joint = {"head": "@>", "head_position": ">", "attn_neuron": ">"}.get(unit, "@")
    return label.rpartition(joint)[0]


@pytest.mark.each_release
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_effects(family: str, tokens: Tensor) -> None:
    """Of every unit, all rows, in an order of their own and units mixed."""
    trace = tlsv.trace(zoo.bridge(family), tokens, 5)
    expected = {}
    for unit in UNITS:
        table = trace.effects(unit, top=None, positions="last")
        names = [at_the_end(label, unit) for label in table["label"]]
        expected |= dict(zip(names, table["total_effect"], strict=True))
    labels = sorted(expected)
    found = chosen.total_effects(trace.run, trace.tokens, trace.target, list(map(parse_label, labels)))
    assert len(labels) > 200
    assert found == pytest.approx([expected[label] for label in labels], abs=1e-6)


@pytest.mark.parametrize("against", [None, 9])
def test_a_report_shows_both(against: Any, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column beside the increase in every table of components, JSON and text, and why orders differ, in one pass."""
    passes = []
    once = gradient.gradients
    monkeypatch.setattr(chosen, "gradients", lambda *arguments: (passes.append(1), once(*arguments)))
    trace = tlsv.trace(zoo.model("llama"), tokens, 5, against=against)
    made = report.make_report(trace, model="tiny", top=4)
    assert passes == [1]
    data = json.loads(report.to_json(made))
    (legend,) = data["legend"]
    for text in (screen.to_text(made), screen.render(made, Console(width=200))):
        assert legend in text
        assert len(re.findall(r"\btotal\b", text)) == len(COMPONENTS) + 1
        for name in COMPONENTS:
            for row in data[name]["rows"]:
                assert re.search(
                    rf"{re.escape(row['label'])}\s.*{re.escape(format(row['total_effect'], '+.3f'))}", text
                )
    labels = [row["label"] for row in data["ffn_neurons"]["rows"]]
    expected = trace.effects(top=None, positions="last").set_index("label")["total_effect"]
    shown = [row["total_effect"] for row in data["ffn_neurons"]["rows"]]
    assert shown == pytest.approx([expected[f"{label}@{trace.position}"] for label in labels], abs=1e-6)


def test_increases_and_effects_differ(tokens: Tensor) -> None:
    """They would not be the same column by mistake."""
    made = report.make_report(tlsv.trace(zoo.model("llama"), tokens, 5), model="tiny", top=8)
    table = made.tables["ffn_neurons"]
    assert (table["total_effect"] - table["log_prob_increase"]).abs().max() > 1e-2


@pytest.mark.each_release
@pytest.mark.parametrize("family", sorted(COPIED))
def test_a_report_without_effects(family: str, tokens: Tensor) -> None:
    """Where no gradient reaches a sublayer, the tables are as before and a note says why."""
    made = report.make_report(tlsv.trace(zoo.bridge(family), tokens, 5), model="tiny", top=4)
    assert made.legend == []
    assert "total_effect" not in made.tables["ffn_neurons"]
    assert any("No total effects, for: " in note and "use TransformerLens 4" in note for note in made.notes)


@pytest.mark.each_release
def test_effects_of_another_run_are_refused(tokens: Tensor) -> None:
    """The gradient is of the model as it is, not of the run under hooks."""
    model = zoo.model("llama")
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda value, hook: value * 0.9)]):
        _, cache = model.run_with_cache(tokens)
    trace = tlsv.trace(model, tokens, 5, cache=cache)
    with pytest.raises(tlsv.UnsupportedModelError, match=r"ends elsewhere .* without them"):
        trace.effects()
    made = report.make_report(trace, model="tiny", top=4)
    assert "total_effect" not in made.tables["heads"]
    assert any("ends elsewhere" in note for note in made.notes)
