"""Every family that is covered, in every mode: decomposition, readout and importance against brute force."""

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import zoo
from helpers.brute_force import BruteForce
from helpers.comparison import INCREASE_TOLERANCE, MIDDLE, SUM_TOLERANCE, TARGET, UNITS, relative_error

import tl_subvalues as tlsv


@dataclass
class Case:
    """One model, its tokens, and the reference of its run."""

    model: Any
    tokens: torch.Tensor
    expected: BruteForce
    cache: Any
    traces: dict[tuple[str, int], tlsv.Trace] = field(default_factory=dict)
    tables: dict[tuple[str, str, int], pd.DataFrame] = field(default_factory=dict)

    def stack(self, layer: int, kind: str, **arguments: Any) -> tuple[torch.Tensor, list[str]]:
        """Stack and labels; kind: head, head_position, neuron, ffn."""
        function = tlsv.ffn_subvalues if kind == "ffn" else partial(tlsv.attn_subvalues, by=kind)
        return function(self.model, self.cache, layer, incl_bias=True, return_labels=True, **arguments)

    def trace(self, scale: str = "frozen", position: int = -1) -> tlsv.Trace:
        key = scale, position
        if key not in self.traces:
            self.traces[key] = tlsv.trace(self.model, self.tokens, TARGET, scale=scale, position=position)
        return self.traces[key]

    def table(self, unit: str, scale: str = "frozen", position: int = -1) -> pd.DataFrame:
        key = unit, scale, position
        if key not in self.tables:
            self.tables[key] = UNITS[unit](self.trace(scale, position))
        return self.tables[key]

    def kinds(self) -> list[tuple[int, str, str]]:
        """(layer, sublayer, kind of part), all that there are."""
        attn = [(i, "attn", kind) for i in range(2) for kind in ("head", "head_position", "neuron")]
        return attn + [(i, "mlp", "ffn") for i in range(2) if self.expected.has(i, "mlp")]


@pytest.fixture(scope="module", params=zoo.every_model())
def case(request: pytest.FixtureRequest, tokens: torch.Tensor) -> Case:
    family, compatibility = request.param
    model = zoo.hooked(family) if family in zoo.HOOKED else zoo.model(family, compatibility=compatibility)
    expected = BruteForce(model, family, tokens, folded=compatibility)
    return Case(model, tokens, expected, model.run_with_cache(tokens)[1])


def test_parts_and_bias_sum_to_what_enters_the_residual_stream(case: Case) -> None:
    """Heads, heads by source, attention neurons and FFN neurons, each with the bias, add up at every position."""
    for layer, sublayer, kind in case.kinds():
        whole = case.cache[f"blocks.{layer}.hook_{sublayer}_out"].double()
        everywhere, _ = case.stack(layer, kind, pos_slice=None)
        last, _ = case.stack(layer, kind, pos_slice=-1)
        assert everywhere.shape[1:] == whole.shape
        assert last.shape == (len(everywhere), 1, whole.shape[-1])
        assert relative_error(everywhere.sum(0), whole) < SUM_TOLERANCE
        assert relative_error(last.sum(0), whole[:, -1]) < SUM_TOLERANCE


def test_each_part_is_the_vector_that_its_label_names(case: Case) -> None:
    """Every labelled vector, and the bias part at the end, equals the one worked out by hand, in the promised order."""
    last = case.expected.n_positions - 1
    for layer, sublayer, kind in case.kinds():
        unit = {"neuron": "attn_neuron", "ffn": "ffn_neuron"}.get(kind, kind)
        expected = case.expected.parts(unit, layer, last)
        expected[f"{layer}_{sublayer}_bias"] = case.expected.bias(layer, sublayer, last)
        stack, labels = case.stack(layer, kind, pos_slice=-1)
        assert sorted(labels) == sorted(expected)
        assert labels == promised_order(case, layer, kind)
        largest = case.expected.output(layer, sublayer, last).abs().max()
        difference = stack[:, 0].double() - torch.stack([expected[label] for label in labels])
        assert float(difference.abs().max() / largest) < SUM_TOLERANCE


def promised_order(case: Case, layer: int, kind: str) -> list[str]:
    heads, _, sources = case.cache[f"blocks.{layer}.attn.hook_pattern"].shape[1:]
    if kind == "ffn":
        n_neurons = case.cache[f"blocks.{layer}.mlp.hook_post"].shape[-1]
        return [*(f"L{layer}N{n}" for n in range(n_neurons)), f"{layer}_mlp_bias"]
    d_head = case.cache[f"blocks.{layer}.attn.hook_v"].shape[-1]
    labels = {
        "head": [f"L{layer}H{h}" for h in range(heads)],
        "head_position": [f"L{layer}H{h}@{p}" for h in range(heads) for p in range(sources)],
        "neuron": [f"L{layer}H{h}D{i}@{p}" for p in range(sources) for h in range(heads) for i in range(d_head)],
    }
    return [*labels[kind], f"{layer}_attn_bias"]


READINGS = [(scale, position) for scale in ("frozen", "recomputed") for position in (-1, MIDDLE)]


def test_increases_equal_brute_force(case: Case) -> None:
    """Every table has exactly the right labels, with the log-probability and probability increases of brute force."""
    for (scale, position), unit in itertools.product(READINGS, UNITS):
        which = f"{unit}, {scale}, position {position}"
        table = case.table(unit, scale, position)
        expected = case.expected.increases(unit, position % case.expected.n_positions, TARGET, scale)
        assert sorted(table.label) == sorted(expected), which
        wanted = torch.tensor([expected[label] for label in table.label], dtype=torch.float64).reshape(-1, 2)
        found = torch.tensor(table[["log_prob_increase", "prob_increase"]].to_numpy(dtype=float))
        assert torch.allclose(found, wanted, rtol=0, atol=INCREASE_TOLERANCE), which
        if unit == "sublayer":
            assert list(table.label) == list(expected), which
        else:
            assert table.log_prob_increase.is_monotonic_decreasing, which


def test_the_final_residual_stream_reads_as_the_models_own_output(case: Case) -> None:
    """log_prob, prob, rank and the public Readout of the last residual stream are the model's own log-softmax."""
    with torch.no_grad():
        logits = case.model(case.tokens)[0].double()
    for scale, position in READINGS:
        which = f"{scale}, position {position}"
        own = logits[position].log_softmax(-1)
        trace = case.trace(scale, position)
        assert trace.log_prob == pytest.approx(float(own[TARGET]), abs=1e-4), which
        assert trace.prob == pytest.approx(float(own[TARGET].exp()), abs=1e-4), which
        assert trace.rank == 1 + int((own > own[TARGET]).sum()), which
        frozen = case.cache["ln_final.hook_scale"][0, position] if case.expected.final_norm else 1.0
        readout = tlsv.Readout(case.model, scale=frozen if scale == "frozen" else scale)
        final = case.cache[f"blocks.{case.expected.n_layers - 1}.hook_resid_post"][0, position]
        assert torch.allclose(readout.log_probs(final).double(), own, rtol=0, atol=1e-4), which


def test_a_given_cache_gives_the_same_numbers(case: Case) -> None:
    """A full cache made earlier, with or without its batch dimension, serves as well as a run of our own."""
    # TransformerLens 2 cannot take the batch dimension from what its norms of queries and keys cache (Qwen 3).
    fails_in_host = not zoo.has_bridge() and getattr(case.model.cfg, "use_qk_norm", False)
    for remove_batch_dim in (False,) if fails_in_host else (False, True):
        _, cache = case.model.run_with_cache(case.tokens, remove_batch_dim=remove_batch_dim)
        given = tlsv.trace(case.model, case.tokens, TARGET, cache=cache)
        assert given.log_prob == pytest.approx(case.trace().log_prob, abs=1e-5)
        for unit in ("sublayer", "head_position", "ffn_neuron"):
            ours, theirs = (t.set_index("label").log_prob_increase for t in (UNITS[unit](given), case.table(unit)))
            assert sorted(ours.index) == sorted(theirs.index)
            assert not ((ours - theirs).abs() > 1e-5).any()
        for layer, sublayer, kind in case.kinds():
            function = tlsv.ffn_subvalues if kind == "ffn" else partial(tlsv.attn_subvalues, by=kind)
            stack = function(case.model, cache, layer, incl_bias=True)
            assert stack.ndim == (2 if remove_batch_dim else 3)
            whole = case.cache[f"blocks.{layer}.hook_{sublayer}_out"][0, -1].double()
            assert relative_error(stack.sum(0).reshape(-1), whole) < SUM_TOLERANCE


# Half precision rounds each sublayer's own output: to 8 bits in bfloat16, 11 in float16.
HALF = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("dtype", list(HALF), ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2"])
def test_half_precision_models_sum_within_their_rounding(family: str, dtype: torch.dtype, tokens: torch.Tensor) -> None:
    """In bfloat16 and float16 the float32 parts sum to the sublayer's output within the model's own rounding."""
    model = zoo.model(family, dtype=dtype)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    for layer in range(2):
        for by in ("head", "head_position", "neuron"):
            stack = tlsv.attn_subvalues(model, cache, layer, by=by, pos_slice=None, incl_bias=True)
            assert stack.dtype == torch.float32
            assert relative_error(stack.sum(0), cache[f"blocks.{layer}.hook_attn_out"].double()) < HALF[dtype]
        stack = tlsv.ffn_subvalues(model, cache, layer, pos_slice=None, incl_bias=True)
        assert stack.dtype == torch.float32
        assert relative_error(stack.sum(0), cache[f"blocks.{layer}.hook_mlp_out"].double()) < HALF[dtype]
    own = logits[0, -1].double()
    trace = tlsv.trace(model, tokens, TARGET)
    assert trace.log_prob == pytest.approx(float(own.log_softmax(-1)[TARGET]), abs=HALF[dtype] * float(own.abs().max()))
