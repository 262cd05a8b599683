"""The search gives what the sweep gives, bit for bit, and its certificate holds."""

from collections.abc import Callable, Iterable

import pandas as pd
import pytest
import torch
from helpers import zoo
from helpers.bounds import both_bounds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tl_subvalues as tlsv
from tl_subvalues.decomposition.subvalues import WholeSubvalues
from tl_subvalues.importance import search
from tl_subvalues.importance.bounds import SiteBounds, site_bounds
from tl_subvalues.readout.reading import read
from tl_subvalues.readout.targets import Target

pytestmark = pytest.mark.any_release

TABLES = ("heads", "head_positions", "attn_neurons", "ffn_neurons")
FAMILIES = ("gpt2", "llama", "gptj", "olmo2", "granite", "cohere", "gemma3", "mpt")


@pytest.fixture(autouse=True)
def _small_blocks(read_in_blocks: Callable[[int, int], None]) -> None:
    """Blocks of 4 vectors and 16 words, so that a search of some hundred candidates has something to leave out."""
    read_in_blocks(4, 16)


def soften(model: object, factor: float = 0.2) -> None:
    """Shrink the readout, so that bounds are near their values as they are in trained models."""
    with torch.no_grad():
        model.unembed.original_component.weight.mul_(factor)


def assert_search_is_sweep(trace: tlsv.Trace, table: str, ks: Iterable[int], largest: bool) -> int:
    """Compare every top=k with the first k rows of one sweep over all; how many evaluations were spared."""
    swept = getattr(trace, table)(top=None, largest=largest)
    pruned = 0
    for k in ks:
        found = getattr(trace, table)(top=k, largest=largest)
        pd.testing.assert_frame_equal(found, swept.head(k), check_exact=True, obj=f"{table}, top={k}, {largest=}")
        certificate = found.attrs["certificate"]
        pruned += certificate["candidates"] - certificate["evaluated"]
    return pruned


@pytest.mark.parametrize("scale", ["frozen", *zoo.slow("recomputed")])
@pytest.mark.parametrize("family", FAMILIES)
def test_search_equals_sweep(family: str, scale: str, tokens: torch.Tensor) -> None:
    """Same rows, same order, same bits, for the highest and the lowest k of every table, in several families."""
    model = zoo.bridge(family)
    soften(model)
    trace = tlsv.trace(model, tokens, 5, scale=scale)
    sides = [(table, largest) for table in TABLES for largest in (True, False)]
    assert sum(assert_search_is_sweep(trace, table, (1, 7, 40), largest) for table, largest in sides) > 0


def test_the_certificate_says_what_was_done(tokens: torch.Tensor) -> None:
    """Beside the k-th value stands the best bound that was left, and nothing left out reaches the k-th value."""
    model = zoo.bridge("llama")
    soften(model)
    trace = tlsv.trace(model, tokens, 5)
    found, swept = trace.ffn_neurons(top=3), trace.ffn_neurons(top=None)
    certificate = found.attrs["certificate"]
    assert certificate["method"] == "bound"
    assert certificate["candidates"] == len(swept) == 96
    assert 3 <= certificate["evaluated"] < 96
    assert certificate["kth_value"] == found["log_prob_increase"].iloc[-1] > certificate["last_bound"]
    assert swept["log_prob_increase"].iloc[3] <= certificate["kth_value"]
    lowest = trace.ffn_neurons(top=3, largest=False).attrs["certificate"]
    assert lowest["last_bound"] is None or lowest["kth_value"] < lowest["last_bound"]


@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_hold_in_float64(family: str, scale: str, tokens: torch.Tensor) -> None:
    """In double precision no increase lies above its upper or below its lower bound, and slack is next to nothing."""
    model = zoo.model(family, dtype=torch.float64)
    trace = tlsv.trace(model, tokens, 5, scale=scale)
    for unit in ("ffn_neuron", "attn_neuron", "head_position", "head"):
        candidates = trace.candidates(unit)
        increase = candidates.evaluate(torch.arange(len(candidates)))
        upper, lower = both_bounds(candidates)
        assert (increase <= upper + 1e-9).all()
        assert (increase >= lower - 1e-9).all()


def test_bounds_are_near_where_a_vector_divides_the_words() -> None:
    """Half of the words gain t and half lose it: Δ is t − log cosh t but for one word, close to both lower bounds."""
    model = zoo.bridge("llama", dtype=torch.float64)
    with torch.no_grad():
        model.ln_final.original_component.weight.fill_(1.0)
        W = model.unembed.original_component.weight.zero_()  # [vocab, d_model]
        W[:30, 1], W[30:60, 1] = 1.0, -1.0
    readout = tlsv.Readout(model, scale=1.0)
    t = torch.tensor([0.009, 0.02, 0.1, 0.5, 1.0], dtype=torch.float64)
    parts = WholeSubvalues(torch.nn.functional.one_hot(torch.ones(5, dtype=torch.long), 32) * t[:, None])
    (bounds,) = site_bounds(read(readout, Target((0,)), torch.zeros(1, 32, dtype=torch.float64)), [0], both_sides=True)
    increase = t - (60 / 61 * t.cosh() + 1 / 61).log()
    products, lengths = parts.inner_products(bounds.gradient), parts.longest()
    upper, lower = bounds.upper(parts, products, lengths), bounds.lower(parts, products, lengths)
    assert (increase <= upper).all()
    assert (increase >= lower).all()
    # Of K = t²/2 at these t, Jensen's bound leaves out all and the lower ones at most two fifths; 2e-6 is slack.
    assert (upper - increase <= t**2 / 2 + 2e-6).all()
    assert (increase - lower <= 0.2 * t**2 + 2e-6).all()


def test_a_broken_bound_is_caught(tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """These comparisons would see a bound that is too low: planted here, the search differs from the sweep."""
    model = zoo.bridge("llama")
    soften(model)
    trace = tlsv.trace(model, tokens, 5)
    upper = SiteBounds.upper
    monkeypatch.setattr(SiteBounds, "upper", lambda self, *arguments: upper(self, *arguments).neg_())
    with pytest.raises(AssertionError):
        assert_search_is_sweep(trace, "ffn_neurons", [3], True)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
def test_ties_and_zeros(scale: str, tokens: torch.Tensor) -> None:
    """Neurons that are copies of each other tie to the bit and keep their order; neurons that write nothing score 0."""
    model = zoo.bridge("llama")
    soften(model)
    with torch.no_grad():
        mlp = model.original_model.model.layers[1].mlp
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
            weight[8:16] = weight[0:8]
            weight[30:40] = 0.0
        mlp.down_proj.weight[:, 8:16] = mlp.down_proj.weight[:, 0:8]
    trace = tlsv.trace(model, tokens, 5, scale=scale)
    all_neurons = trace.ffn_neurons(top=None).set_index("label")
    for neuron in range(8):
        twin = all_neurons.loc[f"L1N{neuron + 8}", "log_prob_increase"]
        assert all_neurons.loc[f"L1N{neuron}", "log_prob_increase"] == twin
    assert (all_neurons.loc[[f"L1N{n}" for n in range(30, 40)], "log_prob_increase"] == 0.0).all()
    assert_search_is_sweep(trace, "ffn_neurons", range(1, 97), True)


def test_constant_scores(tokens: torch.Tensor) -> None:
    """Where every subvalue is zero, every increase is exactly zero and order of computation decides."""
    model = zoo.bridge("llama")
    with torch.no_grad():
        for layer in model.original_model.model.layers:
            layer.mlp.down_proj.weight.zero_()
    trace = tlsv.trace(model, tokens, 5)
    table = trace.ffn_neurons(top=10)
    assert (table["log_prob_increase"] == 0.0).all()
    assert table["label"].tolist() == [f"L0N{n}" for n in range(10)]
    assert_search_is_sweep(trace, "ffn_neurons", [10], True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-4, 1e2])
def test_extreme_weights(size: float, tokens: torch.Tensor) -> None:
    """Tiny and huge subvalues give numbers, no NaN, and the search still equals the sweep."""
    model = zoo.bridge("llama")
    with torch.no_grad():
        model.original_model.model.layers[1].mlp.down_proj.weight.mul_(size)
        model.unembed.original_component.weight.mul_(10.0)
    for scale in ("frozen", "recomputed"):
        trace = tlsv.trace(model, tokens, 5, scale=scale)
        for table in ("ffn_neurons", "attn_neurons"):
            for largest in (True, False):
                assert_search_is_sweep(trace, table, [5], largest)
                assert getattr(trace, table)(top=None)["log_prob_increase"].notna().all()


def test_a_soft_cap_says_so_and_sweeps(tokens: torch.Tensor) -> None:
    """Gemma 2's capped logits have no bound: everything is evaluated, and the certificate gives the reason."""
    trace = tlsv.trace(zoo.model("gemma2"), tokens, 5)
    certificate = trace.ffn_neurons(top=3).attrs["certificate"]
    assert certificate["method"] == "sweep"
    assert certificate["evaluated"] == certificate["candidates"]
    assert "soft cap" in certificate["reason"]


@pytest.mark.parametrize("top", [0, -1, True, 2.5])
def test_a_bad_top_is_refused(top: object, tokens: torch.Tensor) -> None:
    """`top` is a positive number or None."""
    with pytest.raises(Exception, match="top"):
        tlsv.trace(zoo.model("llama"), tokens, 5).ffn_neurons(top=top)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(0.05, 2.0),
    k=st.integers(1, 90),
    target=st.integers(0, zoo.VOCAB - 1),
    scale=st.sampled_from(["frozen", "recomputed"]),
    largest=st.booleans(),
)
def test_search_equals_sweep_on_any_model(
    seed: int, size: float, k: int, target: int, scale: str, largest: bool, tokens: torch.Tensor
) -> None:
    """Whatever the weights, the target, k and the side asked for."""
    model = zoo.bridge("llama", seed=seed)
    soften(model, size)
    trace = tlsv.trace(model, tokens, target, scale=scale)
    assert_search_is_sweep(trace, "ffn_neurons", [k], largest)
    assert_search_is_sweep(trace, "attn_neurons", [k], largest)


@pytest.mark.parametrize("unit", ["ffn_neurons", "attn_neurons"])
def test_many_promises_are_put_in_order_a_few_at_a_time(
    unit: str, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows and the same certificate, whatever the number at a time, the last ones fewer."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    expected = getattr(trace, unit)(top=9)
    for at_once in (1, 7, 100):
        monkeypatch.setattr(search, "_SORTED", at_once)
        found = getattr(trace, unit)(top=9)
        pd.testing.assert_frame_equal(found, expected)
        assert found.attrs == expected.attrs
