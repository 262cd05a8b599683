"""Targets of several words, against others and against the rest: brute force in float64, certificates, refusals."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jaxtyping
import pandas as pd
import pytest
import torch
from helpers import zoo
from helpers.bounds import both_bounds
from helpers.brute_force import BruteForce
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

# As for single words (test_families.py): 2e-5 nats was the most that was seen, on increases of 117 nats.
TOLERANCE = 1e-4
SET, OTHERS = [17, 5], [9, 30, 2]
TARGETS: dict[str, tuple[Any, Any]] = {"set": (SET, None), "contrast": (SET, OTHERS), "rest": (SET, "rest")}
UNITS = ("sublayer", "head", "head_position", "attn_neuron", "ffn_neuron")


def measured(log_probs: Tensor, words: list[int], against: Any) -> Tensor:
    """The measure from all words' log-probabilities, in float64, by its definition."""
    p = log_probs.double().exp()
    ours = p[..., words].sum(-1)
    if against is None:
        return ours.log()
    others = [t for t in range(p.shape[-1]) if t not in words] if against == "rest" else against
    return ours.log() - p[..., others].sum(-1).log()


def tables(trace: tlsv.Trace) -> dict[str, pd.DataFrame]:
    """Every table, all rows."""
    return {
        "sublayer": trace.layers(),
        "head": trace.heads(top=None),
        "head_position": trace.head_positions(top=None),
        "attn_neuron": trace.attn_neurons(top=None),
        "ffn_neuron": trace.ffn_neurons(top=None),
    }


def brute(reference: BruteForce, unit: str, words: list[int], against: Any, scale: str) -> dict[str, float]:
    """label -> increase of the measure, over all layers, at the last position."""
    position = reference.n_positions - 1
    found: dict[str, float] = {}
    for layer in range(reference.n_layers):
        for sublayer in ("attn", "mlp"):
            if not reference.has(layer, sublayer):
                continue
            if unit == "sublayer":
                parts = {f"{layer}_{sublayer}_out": reference.output(layer, sublayer, position)}
            elif (unit == "ffn_neuron") == (sublayer == "mlp"):
                parts = reference.parts(unit, layer, position)
            else:
                continue
            x = reference.residual(layer, sublayer, position)
            before = measured(reference.log_probs(x[None], position, scale)[0], words, against)
            after = measured(
                reference.log_probs(x + torch.stack(list(parts.values())), position, scale), words, against
            )
            found.update(zip(parts, (after - before).tolist(), strict=True))
    return found


@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
@pytest.mark.parametrize("family", zoo.DENSE)
def test_every_family_equals_brute_force(family: str, scale: Any, tokens: Tensor) -> None:
    """A set, a contrast and log-odds: every component's increase, and the measure itself."""
    model = zoo.bridge(family)
    reference = BruteForce(model, family, tokens)
    final = reference.log_probs(reference.final(-1)[None], reference.n_positions - 1, "frozen")[0]
    for name, (words, against) in TARGETS.items():
        trace = tlsv.trace(model, tokens, words, against=against, scale=scale)
        value = trace.log_prob if against is None else trace.log_prob_diff
        assert value == pytest.approx(float(measured(final, words, against)), abs=TOLERANCE), name
        assert trace.log_prob == pytest.approx(float(measured(final, words, None)), abs=TOLERANCE)
        for unit, table in tables(trace).items():
            expected = brute(reference, unit, words, against, scale)
            column = f"{trace.measure}_increase"
            assert set(table["label"]) == set(expected), (name, unit)
            off = [abs(row - expected[label]) for label, row in zip(table["label"], table[column], strict=True)]
            assert max(off) < TOLERANCE * max(1.0, max(map(abs, expected.values()))), (name, unit, max(off))
            assert ("prob_increase" in table) == (against is None)


@pytest.fixture
def small_blocks(read_in_blocks: Callable[[int, int], None]) -> None:
    read_in_blocks(4, 16)


def softened(family: str, seed: int = 0, factor: float = 0.2) -> Any:
    """A model whose bounds are near its values, as those of trained models are."""
    model = zoo.bridge(family, seed=seed)
    with torch.no_grad():
        model.unembed.original_component.weight.mul_(factor)
    return model


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 60),
    words=st.lists(st.integers(0, zoo.VOCAB - 1), min_size=1, max_size=6, unique=True),
    against=st.one_of(st.none(), st.just("rest"), st.lists(st.integers(0, zoo.VOCAB - 1), min_size=1, unique=True)),
    scale=st.sampled_from(["frozen", "recomputed"]),
    largest=st.booleans(),
)
def test_search_equals_sweep(
    seed: int, k: int, words: list[int], against: Any, scale: Any, largest: bool, tokens: Tensor
) -> None:
    """Whatever the words on both sides: the same rows, order and bits as a sweep over all."""
    if isinstance(against, list):
        against = [token for token in against if token not in words] or None
    trace = tlsv.trace(softened("llama", seed), tokens, words, against=against, scale=scale)
    for table in ("ffn_neurons", "attn_neurons", "heads"):
        found = getattr(trace, table)(top=k, largest=largest)
        swept = getattr(trace, table)(top=None, largest=largest)
        pd.testing.assert_frame_equal(found, swept.head(k), check_exact=True)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2", "granite"])
def test_certificates(family: str, tokens: Tensor) -> None:
    """A set and log-odds are searched with a bound that leaves some out; a contrast needs no search: all are direct."""
    model = softened(family)
    for against, method in ((None, "bound"), ("rest", "bound"), (OTHERS, "direct"), (9, "direct")):
        trace = tlsv.trace(model, tokens, SET, against=against)
        table = trace.ffn_neurons(top=3)
        certificate = table.attrs["certificate"]
        assert certificate["method"] == method
        assert (certificate["evaluated"] < certificate["candidates"]) == (method == "bound")
        assert certificate["kth_value"] == table[f"{trace.measure}_increase"].iloc[-1]


@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2", "granite", "mpt"])
def test_bounds_hold_in_float64(family: str, scale: Any, tokens: Tensor) -> None:
    """Of sets and log-odds, from above and from below."""
    model = zoo.model(family, dtype=torch.float64)
    for against in (None, "rest"):
        trace = tlsv.trace(model, tokens, SET, against=against, scale=scale)
        for unit in ("ffn_neuron", "attn_neuron", "head"):
            candidates = trace.candidates(unit)
            increase = candidates.evaluate(torch.arange(len(candidates)))
            upper, lower = both_bounds(candidates)
            assert (increase <= upper + 1e-9).all()
            assert (increase >= lower - 1e-9).all()
            assert not (increase >= upper - 1e-6).all()


def test_one_word_in_a_list_is_that_word(tokens: Tensor) -> None:
    """The same tables, to the bit."""
    model = zoo.bridge("llama")
    for name, table in tables(tlsv.trace(model, tokens, [5])).items():
        pd.testing.assert_frame_equal(table, tables(tlsv.trace(model, tokens, 5))[name], check_exact=True)


def test_a_soft_cap_is_no_hindrance_to_a_contrast(tokens: Tensor) -> None:
    """Gemma 2's capped logits: a contrast is direct, a set is swept for the reason that the certificate gives."""
    model = zoo.model("gemma2")
    contrast = tlsv.trace(model, tokens, 5, against=9).ffn_neurons(top=3).attrs["certificate"]
    assert contrast["method"] == "direct"
    certificate = tlsv.trace(model, tokens, SET).ffn_neurons(top=3).attrs["certificate"]
    assert (certificate["method"], "soft cap" in certificate["reason"]) == ("sweep", True)


@pytest.mark.each_release
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_logit_difference_is_transformer_lens_s_own(family: str, tokens: Tensor) -> None:
    """On the same run; and in compatibility mode, where its attribution is defined, layer by layer."""
    model = zoo.bridge(family)
    logits = model(tokens)[0, -1].double()
    trace = tlsv.trace(model, tokens, 5, against=9)
    assert trace.log_prob_diff == pytest.approx(float(logits[5] - logits[9]), abs=1e-5)
    folded = zoo.bridge(family)
    folded.enable_compatibility_mode()
    _, cache = folded.run_with_cache(tokens)
    trace = tlsv.trace(folded, tokens, 5, against=9)
    stack = torch.stack([cache[f"blocks.{layer}.hook_{name}_out"] for layer in range(2) for name in ("attn", "mlp")])
    theirs = cache.logit_attrs(stack[:, :, -1:], tokens=5, incorrect_tokens=9, pos_slice=-1)
    assert trace.layers()["log_prob_diff_increase"].tolist() == pytest.approx(theirs.flatten().tolist(), abs=1e-4)


def test_log_odds_do_not_saturate(tokens: Tensor) -> None:
    """Where a word is all but certain, its log-probability barely moves and its log-odds do."""
    model = zoo.bridge("llama")
    likely = int(model(tokens)[0, -1].argmax())
    with torch.no_grad():
        model.unembed.original_component.weight[likely] *= 3.0
    sure, odds = (tlsv.trace(model, tokens, likely, against=against) for against in (None, "rest"))
    assert sure.prob > 0.99
    assert odds.log_prob_diff == pytest.approx(math.log(sure.prob / (1 - sure.prob)), rel=1e-2)
    last = "1_mlp_out"
    a, b = (t.layers().set_index("label").loc[last].iloc[2] for t in (sure, odds))
    assert abs(b) > abs(a)


def test_without_a_target_it_is_the_most_probable_word(tokens: Tensor) -> None:
    """Also against others, unless it is one of them."""
    model = zoo.bridge("llama")
    likely = int(model(tokens)[0, 4].argmax())
    trace = tlsv.trace(model, tokens, position=4)
    assert (trace.target_ids, trace.rank, trace.against_ids) == ([likely], 1, None)
    assert tlsv.trace(model, tokens, position=4, against="rest").target_id == likely
    with pytest.raises(ValueError, match="is in the target and in what it is measured against"):
        tlsv.trace(model, tokens, position=4, against=[likely])
    batch = tlsv.trace_batch(model, [tokens, tokens[:, :5]])
    assert batch[1].target_id == likely


def test_attributes(tokens: Tensor) -> None:
    """What a trace says of its target."""
    model = zoo.bridge("llama")
    trace = tlsv.trace(model, tokens, ["w5", 17], against=["w9"])
    assert (trace.target_ids, trace.target_tokens, trace.target_id, trace.target_token) == (
        [5, 17],
        ["w5", "w17"],
        5,
        "w5",
    )
    assert (trace.against_ids, trace.measure) == ([9], "log_prob_diff")
    log_probs = model(tokens)[0, -1].double().log_softmax(-1)
    assert trace.log_prob == pytest.approx(float(log_probs[[5, 17]].logsumexp(0)), abs=1e-5)
    assert trace.prob == pytest.approx(math.exp(trace.log_prob), abs=1e-6)
    assert trace.rank == 1 + int((log_probs > log_probs[[5, 17]].max()).sum())
    plain = tlsv.trace(model, tokens, 5)
    assert (plain.against_ids, plain.measure, plain.log_prob_diff) == (None, "log_prob", None)


@pytest.mark.parametrize("against", [OTHERS, "rest"])
def test_later_calls_work_with_the_measure(against: Any, tokens: Tensor) -> None:
    """Curves end at it, query scores add up to its increases, ablations report it."""
    model = zoo.bridge("llama")
    trace = tlsv.trace(model, tokens, SET, against=against)
    curve = trace.curve(trace.layers())
    assert list(curve.columns) == ["step", "label", "prob", "log_prob", "log_prob_diff"]
    assert curve["log_prob_diff"].iloc[-1] == pytest.approx(trace.log_prob_diff, abs=1e-4)
    assert curve["log_prob"].iloc[-1] == pytest.approx(trace.log_prob, abs=1e-4)
    values = trace.ffn_neurons(top=6)
    queries = trace.query_layers(values)
    kept = values[~values["label"].isin(queries.attrs["left_out"])]
    biases = 0.0
    for row in kept.itertuples():
        scores = trace.activations(row.label).set_index("label")["score"]
        biases += row.log_prob_diff_increase * scores.drop("bias").sum() / scores.drop("bias").sum()
    assert queries["query_score"].sum() == pytest.approx(biases, rel=1e-3)
    with pytest.raises(ValueError, match="values is a table"):
        trace.query_layers(values.rename(columns={"log_prob_diff_increase": "log_prob_increase"}))
    report = trace.ablate(values)
    hooks = tlsv.ablation_hooks(model, values)
    after = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].log_softmax(-1)
    assert report["log_prob_diff_before"] == pytest.approx(trace.log_prob_diff, abs=1e-4)
    assert report["log_prob_diff_after"] == pytest.approx(float(measured(after, SET, against)), abs=1e-4)
    assert report["log_prob_after"] == pytest.approx(float(measured(after, SET, None)), abs=1e-4)


def test_a_batch_of_different_targets(tokens: Tensor) -> None:
    """One each, against one each: what single traces give, also from the shared sweep."""
    model = zoo.bridge("llama")
    prompts = [tokens, tokens[:, :4]]
    batch = tlsv.trace_batch(model, prompts, [SET, 7], against=["rest", "rest"])
    assert [trace.against_ids for trace in batch] == ["rest", "rest"]
    for table in ("ffn_neurons", "heads", "head_positions", "layers"):
        found = getattr(batch, table)() if table == "layers" else getattr(batch, table)(top=None)
        for number, (prompt, target) in enumerate(zip(prompts, (SET, 7), strict=True)):
            alone = getattr(tlsv.trace(model, prompt, target, against="rest"), table)
            alone = (alone() if table == "layers" else alone(top=None)).set_index("label")["log_prob_diff_increase"]
            mine = found[found["prompt"] == number].set_index("label")["log_prob_diff_increase"]
            assert mine.loc[alone.index].tolist() == pytest.approx(alone.tolist(), abs=2e-5)
    mixed = tlsv.trace_batch(model, prompts, [SET, 7], against=[[9], [3, 4]]).ffn_neurons(top=2)
    assert [certificate["method"] for certificate in mixed.attrs["certificates"]] == ["direct", "direct"]


def test_answers_against_each_other(tokens: Tensor) -> None:
    """Token by token: the signed measures add up to the difference of the whole answers' log-probabilities."""
    model = zoo.bridge("llama")
    answer, other = [4, 8, 15], [4, 16, 23, 42]

    def log_prob(ids: Iterable[int]) -> float:
        ids = list(ids)
        whole = torch.cat([tokens[0], torch.tensor(ids)])
        log_probs = model(whole[None])[0].double().log_softmax(-1)
        return sum(float(log_probs[tokens.shape[1] - 1 + i, t]) for i, t in enumerate(ids))

    traces = tlsv.trace_answer(model, tokens, answer, against=other)
    assert [trace.target_ids for trace in traces] == [[8], [15], [23], [42]]
    assert traces.signs == (1, 1, -1, -1)
    assert traces[0].against_ids == [16]
    assert traces.log_prob_diff == pytest.approx(log_prob(answer) - log_prob(other), abs=1e-4)
    with pytest.raises(ValueError, match="one answer is part of the other"):
        tlsv.trace_answer(model, tokens, answer, against=[4, 8])
    with pytest.raises(ValueError, match="one answer is part of the other"):
        tlsv.trace_answer(model, tokens, answer, against=answer)


@pytest.mark.parametrize(
    ("target", "against", "message"),
    [
        ([], None, "target is an empty list"),
        (5, [], "against is an empty list"),
        ([5, 5], None, "twice"),
        ([5, "w5"], None, "twice"),
        (5, [9, 9], "against has 'w9'"),
        ([5, 9], 9, "is in the target and in what it is measured against"),
        ([5, "w3 w4"], None, "2 tokens"),
        (5, "w3 w4", "2 tokens"),
        ([5, 61], None, "outside the vocabulary"),
        (5, [-1], "outside the vocabulary"),
        (list(range(61)), "rest", "no rest"),
        (5, 2.5, "token id or text"),
        ([5, None], None, "token id or text"),
        (list(range(61)) * 20, None, "more than the 1000"),
    ],
)
def test_refusals(target: Any, against: Any, message: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each, before anything runs."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = zoo.bridge("llama")
    monkeypatch.setattr(type(model), "run_with_cache", None)
    with pytest.raises(ValueError, match=message):
        tlsv.trace(model, tokens, target, against=against)


@pytest.mark.parametrize(
    ("targets", "against", "message"),
    [("w5", None, "targets is a list"), ([5], None, "for each of the 2 prompts"), ([5, 6], "w9", "against is a list")],
)
def test_refusals_of_batches(targets: Any, against: Any, message: str, tokens: Tensor) -> None:
    """A text is no list of targets."""
    with pytest.raises(ValueError, match=message):
        tlsv.trace_batch(zoo.bridge("llama"), [tokens, tokens], targets, against=against)


@pytest.mark.slow
@pytest.mark.real_model
def test_capitals_on_the_real_model() -> None:
    """Any of three capitals, against two others: few evaluations certify a set, a contrast is direct and exact."""
    model = tlsv.load_model()
    words, others = [" Paris", " London", " Rome"], [" Berlin", " Madrid"]
    trace = tlsv.trace(model, "The capital of France is", words)
    certificate = trace.ffn_neurons().attrs["certificate"]
    assert certificate["method"] == "bound"
    assert certificate["evaluated"] <= 330  # 306 were needed
    contrast = tlsv.trace(model, "The capital of France is", words, against=others)
    table = contrast.ffn_neurons(top=40)
    W, norm = model.W_U.detach().double(), model.ln_final
    scale = trace.readout.scale.double()
    for row in table.itertuples():
        layer = model.blocks[row.layer]
        v = row.coefficient * layer.mlp.W_out[row.neuron].detach().double()
        x = contrast.cache[f"blocks.{row.layer}.hook_resid_mid"][0, -1].double()
        logits = torch.stack([x, x + v]) / scale * norm.weight.detach().double() @ W
        values = measured(logits.log_softmax(-1), contrast.target_ids, contrast.against_ids)
        assert row.log_prob_diff_increase == pytest.approx(float(values[1] - values[0]), abs=4e-6)
    odds = tlsv.trace(model, "The capital of France is", " Paris", against="rest")
    assert odds.log_prob_diff == pytest.approx(math.log(odds.prob / (1 - odds.prob)), abs=1e-4)
    assert odds.ffn_neurons().attrs["certificate"]["evaluated"] <= 480
