"""Total effects: brute force through a frozen model written here, finite differences, sums, a fixture by autograd."""

import json
from pathlib import Path
from typing import Any

import jaxtyping
import pandas as pd
import pytest
import torch
from helpers import zoo
from helpers.frozen_forward import FrozenForward
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.upstream.sinks import sinks

EXPECTED = json.loads((Path(__file__).parent / "data" / "frozen_effects.json").read_text(encoding="utf-8"))
TARGET = 17
RULES = ("gradient", "frozen", "half")
UNITS = ("sublayer", "head", "head_position", "attn_neuron", "ffn_neuron")


FAMILIES = [
    "gpt2",
    "llama",
    "llama_biased_tied",
    "qwen2",
    "gemma3",
    "olmo2",
    "granite",
    "gptj",
    "gpt_neox_parallel",
    "opt",
]


@pytest.mark.few_families
@pytest.mark.parametrize("rule", ["frozen", "half"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_led_forward_through_a_frozen_model(family: str, rule: Any, tokens: Tensor) -> None:
    """Rows of every unit, at early and late positions, against the frozen model written here."""
    model = zoo.bridge(family)
    forward = FrozenForward(model, family, tokens, TARGET, rule == "half")
    trace = tlsv.trace(model, tokens, TARGET)
    for unit in UNITS:
        table = trace.effects(unit, rule=rule, top=None)
        size = table["total_effect"].abs().max()
        for row in table.iloc[:: max(1, len(table) // 12)].itertuples():
            sublayer = getattr(row, "sublayer", "mlp" if unit == "ffn_neuron" else "attn")
            at = getattr(row, "destination", row.position)
            if unit == "sublayer":
                vector = forward.brute.output(row.layer, sublayer, at)
            else:
                joint = {"head": "@>", "head_position": ">", "attn_neuron": ">"}.get(unit, "@")
                name = row.label.rpartition(joint)[0]
                vector = forward.brute.parts(unit, row.layer, at)[name]
            expected = forward.effect(row.layer, sublayer, at, vector)
            assert abs(row.total_effect - expected) < 2e-4 * max(1.0, size), (unit, row.label)


@pytest.mark.few_families
@pytest.mark.parametrize("family", sorted({*zoo.DENSE, *zoo.MIXTURES}))
def test_sums(family: str, tokens: Tensor) -> None:
    """In every family: embeddings and biases, and all that is added at the end, add up; parts give their wholes."""
    model = zoo.bridge(family)
    trace = tlsv.trace(model, tokens, TARGET)
    latent = family in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
    for rule in ("frozen", "half"):
        if latent:
            with pytest.raises(tlsv.UnsupportedModelError, match="latent attention"):
                trace.effects(rule=rule)
            continue
        embedded = trace.effects("embedding", rule=rule, top=None)
        score, size = embedded.attrs["score"], embedded["total_effect"].abs().sum()
        assert embedded["total_effect"].sum() == pytest.approx(score, abs=2e-4 * size)
        outputs = trace.effects("sublayer", rule=rule, top=None)
        direct = outputs["direct_effect"].sum() + embedded.query("not position.isna()")["direct_effect"].sum()
        assert direct == pytest.approx(score, abs=1e-3 * max(1.0, outputs["direct_effect"].abs().sum()))
        assert outputs.attrs["direct_left_out"] == pytest.approx(score - outputs["direct_effect"].sum(), abs=1e-6)
        heads, sources = (trace.effects(unit, rule=rule, top=None) for unit in ("head", "head_position"))
        summed = sources.groupby(["layer", "head", "destination"])["total_effect"].sum()
        whole = heads.set_index(["layer", "head", "position"])["total_effect"].rename_axis(summed.index.names)
        assert (summed - whole).abs().max() < 2e-4 * max(1.0, whole.abs().max())


HYBRIDS = sorted(zoo.HYBRIDS)
# Before release 4 the first is not taken apart at all, and of the others outputs are shown that nothing follows from.
COPIED: set[str] = set()
if zoo.has_hooked_transformer():
    HYBRIDS.remove("olmo_hybrid")
    COPIED = {"granite", "granitemoe"}


@pytest.mark.parametrize("family", sorted(COPIED))
def test_outputs_that_no_gradient_reaches_are_refused(family: str, tokens: Tensor) -> None:
    """By name, with the release that has them, and the rule that does without."""
    trace = tlsv.trace(zoo.bridge(family), tokens, TARGET)
    with pytest.raises(tlsv.UnsupportedModelError, match="use TransformerLens 4, or rule='frozen'"):
        trace.effects()
    assert len(trace.effects(rule="frozen", top=3)) == 3


@pytest.mark.parametrize("family", sorted({*zoo.DENSE, *zoo.MIXTURES, *HYBRIDS} - COPIED))
def test_the_gradient_is_what_ablation_begins_with(family: str, tokens: Tensor) -> None:
    """Coefficients times 1 ± a little, in the host: half the difference is the effect; in every family."""
    model = zoo.bridge(family)
    trace = tlsv.trace(model, tokens, TARGET)
    step = 2e-3
    for unit in ("ffn_neuron", "head", "sublayer"):
        table = trace.effects(unit, top=3)
        for row in table.itertuples():
            more, less = (trace.ablate(row.label, mode=factor)["log_prob_after"] for factor in (1 + step, 1 - step))
            measured = (more - less) / (2 * step)
            assert row.total_effect == pytest.approx(measured, abs=3e-2 * max(1.0, abs(measured))), (unit, row.label)


@pytest.mark.parametrize("family", HYBRIDS)
def test_mixers_are_refused_by_name(family: str, tokens: Tensor) -> None:
    """Nothing linear leads back through a state space or a convolution: the error says which rule does without."""
    trace = tlsv.trace(zoo.bridge(family), tokens, TARGET)
    with pytest.raises(tlsv.UnsupportedModelError, match=r"rule='gradient'|by source position"):
        trace.effects(rule="frozen")


@pytest.mark.any_release
@pytest.mark.parametrize("against", [None, [9, 3], "rest"])
def test_targets(against: Any, tokens: Tensor) -> None:
    """Sets, contrasts and log-odds: the score is ⟨x, gradient⟩, and the gradient what finite differences give."""
    model = zoo.bridge("llama")
    trace = tlsv.trace(model, tokens, [TARGET, 5], against=against)
    column = "log_prob_after" if against is None else "log_prob_diff_after"
    for row in trace.effects(top=3).itertuples():
        more, less = (trace.ablate(row.label, mode=factor)[column] for factor in (1.02, 0.98))
        assert row.total_effect == pytest.approx((more - less) / 0.04, abs=2e-2 * max(1.0, abs(row.total_effect)))
    embedded = trace.effects("embedding", rule="half", top=None)
    assert embedded["total_effect"].sum() == pytest.approx(embedded.attrs["score"], abs=1e-3)


@pytest.mark.any_release
def test_a_contrast_of_two_words_is_its_own_score(tokens: Tensor) -> None:
    """Without a bias in the final norm or the unembedding, the score is the whole logit difference."""
    trace = tlsv.trace(zoo.bridge("llama"), tokens, TARGET, against=5)
    assert trace.effects(rule="frozen").attrs["score"] == pytest.approx(trace.log_prob_diff, abs=1e-4)


@pytest.mark.any_release
def test_rows_and_columns(tokens: Tensor) -> None:
    """Highest first, by size or by sign; `last` keeps the trace's own position; labels and columns as promised."""
    trace = tlsv.trace(zoo.bridge("llama"), tokens, TARGET)
    whole = trace.effects(top=None)
    assert list(whole.columns) == [
        "label", "layer", "neuron", "position", "token", "coefficient", "direct_effect", "total_effect", "sink"
    ]  # fmt: skip
    assert len(whole) == 2 * 48 * 7
    assert whole["total_effect"].abs().is_monotonic_decreasing
    pd.testing.assert_frame_equal(trace.effects(top=9), whole.head(9))
    for largest in (True, False):
        ordered = whole.sort_values("total_effect", ascending=not largest, kind="stable", ignore_index=True)
        pd.testing.assert_frame_equal(trace.effects(top=5, largest=largest), ordered.head(5))
    last = trace.effects(positions="last", top=None)
    pd.testing.assert_frame_equal(last, whole[whole["position"] == 6].reset_index(drop=True))
    row = whole.iloc[0]
    assert row["label"] == f"L{row['layer']}N{row['neuron']}@{row['position']}"
    own = trace.cache[f"blocks.{row['layer']}.mlp.hook_post"][0, row["position"], row["neuron"]]
    assert row["coefficient"] == pytest.approx(float(own), abs=1e-5)
    read = trace.effects("attn_neuron", top=3)
    assert list(read.columns)[:6] == ["label", "layer", "head", "dim", "position", "destination"]
    assert read["label"].tolist() == [
        f"L{r.layer}H{r.head}D{r.dim}@{r.position}>{r.destination}" for r in read.itertuples()
    ]
    middle = tlsv.trace(zoo.bridge("llama"), tokens, TARGET, position=3)
    assert middle.effects(top=None)["position"].max() == 3
    assert set(trace.effects("embedding", top=None)["label"]) == {f"embed@{p}" for p in range(7)}


@pytest.mark.any_release
def test_experts_neurons(tokens: Tensor) -> None:
    """With their expert, routing weights in the coefficient; idle experts do nothing."""
    trace = tlsv.trace(zoo.bridge("mixtral"), tokens, TARGET)
    table = trace.effects(top=None)
    assert table["label"].str.match(r"L\dE\dN\d+@\d$").all()
    here = table[table["position"] == 6].set_index("label")["coefficient"]
    own = trace.ffn_neurons(top=None)
    for row in own.head(20).itertuples():
        assert here[f"{row.label}@6"] == pytest.approx(row.coefficient, abs=1e-5)


@pytest.mark.any_release
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "neuron"}, "unit is one of"),
        ({"rule": "relp"}, "rule is one of 'gradient', 'frozen', 'half'"),
        ({"positions": 3}, "positions is one of"),
        ({"largest": "yes"}, "largest is None, True or False"),
        ({"top": 0}, "top is a positive number"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    trace = tlsv.trace(zoo.bridge("llama"), tokens, TARGET)
    with pytest.raises(ValueError, match=message):
        trace.effects(**arguments)


@pytest.mark.any_release
@pytest.mark.parametrize(("share", "expected"), [(0.5, {2}), (0.2, set())])
def test_a_sink_is_marked(share: float, expected: set[int], tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A position that later ones look at with more than a quarter of their attention; others cannot see it."""
    trace = tlsv.trace(zoo.bridge("llama"), tokens, TARGET)
    pattern = torch.zeros(1, 4, 7, 7)
    for query in range(7):
        pattern[..., query, query] = 1.0
        if query in (3, 4, 5):  # the last is out of its window
            pattern[..., query, query], pattern[..., query, 2] = 1 - share, share
    monkeypatch.setattr(type(trace.run.activations), "pattern", lambda self, layer: pattern)
    assert sinks(trace.run) == expected
    monkeypatch.undo()
    monkeypatch.setattr("tl_subvalues.tracing.effect_tables.sinks", lambda run: frozenset({3}))
    table = trace.effects(top=None)
    assert set(table.loc[table["sink"], "position"]) == {3}


def plain_rms(self: Any, x: Tensor) -> Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.mark.any_release
@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_real_model_equals_the_fixture(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd over Hugging Face modules, scales, patterns and gates detached; in float64, norms and softmax too."""
    if dtype == torch.float64:
        llama = pytest.importorskip("transformers.models.llama.modeling_llama")
        softmax = torch.nn.functional.softmax
        monkeypatch.setattr(llama.LlamaRMSNorm, "forward", plain_rms)
        monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=-1, dtype=None, **_: softmax(x, dim))
    tolerance = 2e-4 if dtype == torch.float32 else 1e-9  # 6e-5 was the most that was seen in float32
    model = tlsv.load_model(dtype=dtype)
    for case in EXPECTED["cases"]:
        trace = tlsv.trace(model, case["tokens"], case["target_ids"], against=case["against_ids"])
        for rule, expected in case["rules"].items():
            neurons = trace.effects(rule=rule).set_index("label")
            for row in expected["neurons"]:
                assert neurons["total_effect"][row["label"]] == pytest.approx(row["total_effect"], abs=tolerance)
                assert neurons["coefficient"][row["label"]] == pytest.approx(row["coefficient"], abs=tolerance * 1e3)
            heads = trace.effects("head_position", rule=rule).set_index("label")["total_effect"]
            for row in expected["heads"]:
                assert heads[row["label"]] == pytest.approx(row["total_effect"], abs=tolerance)
            embedded = trace.effects("embedding", rule=rule, top=None).set_index("label")["total_effect"]
            found = [embedded[f"embed@{p}"] for p in range(len(case["tokens"]))]
            assert found == pytest.approx(expected["embedding"], abs=tolerance)
            if rule != "gradient":
                assert neurons.attrs["score"] == pytest.approx(expected["score"], abs=tolerance)


@pytest.mark.any_release
@pytest.mark.slow
@pytest.mark.real_model
def test_the_gradient_predicts_ablation() -> None:
    """Rank correlation with zeroing each alone, positions that are no sinks: gradient high, frozen lower."""
    model = tlsv.load_model()
    trace = tlsv.trace(model, "The capital of France is", " Paris", against=" Rome")
    tables = {rule: trace.effects(rule=rule, top=40) for rule in RULES}
    labels = sorted({label for table in tables.values() for label in table.loc[~table["sink"], "label"]})
    everything = {rule: trace.effects(rule=rule, top=None).set_index("label")["total_effect"] for rule in RULES}
    measured = pd.Series({label: trace.log_prob_diff - trace.ablate(label)["log_prob_diff_after"] for label in labels})
    correlation = {rule: everything[rule][labels].rank().corr(measured.rank()) for rule in RULES}
    assert correlation["gradient"] > 0.93
    assert correlation["gradient"] > max(correlation["frozen"], correlation["half"])
