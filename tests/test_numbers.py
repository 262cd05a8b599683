"""Numbers as they come out of tables: numpy's are whole numbers too; what is empty gives what is empty."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.model_view.indexing import whole_number

pytestmark = pytest.mark.any_release


@pytest.fixture(scope="module")
def case(tokens: Tensor) -> tuple[Any, tlsv.Trace, Any]:
    model = zoo.model("llama")
    return model, tlsv.trace(model, tokens, 5), model.run_with_cache(tokens)[1]


def test_a_table_s_own_numbers(case: tuple[Any, tlsv.Trace, Any]) -> None:
    """Layer, neuron and position of a row go where an int goes, and give the same."""
    model, trace, cache = case
    row = trace.ffn_neurons(1).iloc[0]
    layer, neuron = row["layer"], row["neuron"]
    assert isinstance(layer, np.integer)
    for stack in (tlsv.ffn_subvalues, tlsv.attn_subvalues):
        made, labels = stack(model, cache, layer, return_labels=True)
        assert torch.equal(made, stack(model, cache, int(layer)))
        assert labels[0].startswith(f"L{int(layer)}")
    chosen = tlsv.ffn_subvalues(model, cache, layer, neuron_slice=neuron)
    assert torch.equal(chosen, tlsv.ffn_subvalues(model, cache, int(layer), neuron_slice=int(neuron)))
    assert trace.vocabulary(row["label"], k=np.int64(2)).equals(trace.vocabulary(row["label"], k=2))
    source = trace.head_positions(1)["position"].iloc[0]
    by_hand = trace.ablate(row["label"], mode=0.5, position=int(source))
    assert trace.ablate(row["label"], mode=np.float32(0.5), position=source).equals(by_hand)
    assert trace.ablate(row["label"], mode=np.int64(0)).equals(trace.ablate(row["label"], mode=0))
    assert tlsv.trace(model, trace.tokens, 5, position=source).position == int(source)


def test_targets_and_settings(case: tuple[Any, tlsv.Trace, Any], tokens: Tensor) -> None:
    """Arrays and columns of target ids; the numbers of `trace_batch`, `evaluate` and `collect`."""
    model = case[0]
    for many in (np.array([5, 6]), pd.Series([5, 6])):
        assert tlsv.trace(model, tokens, many).target_ids == [5, 6]
        batch = tlsv.trace_batch(model, [tokens, tokens], many, batch_size=np.int64(1))
        assert [one.target_id for one in batch] == [5, 6]
    texts = tlsv.trace_batch(model, pd.Series(["w3 w4", "w4"]), pd.Series(["w5", "w6"]))
    assert [one.target_token for one in texts] == ["w5", "w6"]
    facts = pd.DataFrame({"prompt": ["w3 w4"], "target": ["w5"]})
    assert tlsv.collect(model, facts, top=np.int64(3)).equals(tlsv.collect(model, facts, top=3))
    by_hand = tlsv.evaluate(model, facts, ks=[2, 3], seed=1, rankings="norm")
    assert tlsv.evaluate(model, facts, ks=np.array([2, 3]), seed=np.int64(1), rankings="norm").equals(by_hand)


def test_a_record_s_settings_are_plain_numbers(case: tuple[Any, tlsv.Trace, Any], tmp_path: Any) -> None:
    """A run with numpy's numbers is taken up by one with Python's."""
    model, record = case[0], tmp_path / "record"
    facts = pd.DataFrame({"prompt": ["w3 w4"], "target": ["w5"]})
    first = tlsv.evaluate(model, facts, ks=np.array([2]), seed=np.int64(1), rankings="norm", record=record)
    assert tlsv.evaluate(model, facts, ks=[2], seed=1, rankings="norm", record=record).equals(first)


@pytest.mark.parametrize("given", [0, -1, 1.5, "3", None, True, np.float64(2)])
def test_what_is_no_whole_number(given: Any) -> None:
    """Refused by name, with what is asked for."""
    with pytest.raises(ValueError, match="k is a positive number, got"):
        whole_number(given, "k")


def test_numbers_that_are_refused(case: tuple[Any, tlsv.Trace, Any], tokens: Tensor) -> None:
    """Each where it is given, and before any work."""
    model, _, cache = case
    facts = pd.DataFrame({"prompt": ["w3 w4"], "target": ["w5"]})
    with pytest.raises(ValueError, match="batch_size is a positive number, got 0"):
        tlsv.trace_batch(model, [tokens], [5], batch_size=0)
    with pytest.raises(ValueError, match="seed is a whole number from 0 on, got -1"):
        tlsv.evaluate(model, facts, seed=-1)
    with pytest.raises(ValueError, match="ks is empty"):
        tlsv.evaluate(model, facts, ks=[])
    with pytest.raises(ValueError, match=r"layer (np.int64\()?2\)? is out of range"):
        tlsv.ffn_subvalues(model, cache, np.int64(2))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_no_positions(family: str, tokens: Tensor) -> None:
    """`pos_slice=[]` gives stacks without positions, of a mixture of experts too, of which none is in use then."""
    model = zoo.bridge(family)
    cache = model.run_with_cache(tokens)[1]
    for by in ("head", "head_position", "neuron"):
        stack, labels = tlsv.attn_subvalues(model, cache, 1, by=by, pos_slice=[], return_labels=True)
        assert stack.shape == (len(labels), 1, 0, 32)
        assert labels
    for bias in (False, True):
        stack, labels = tlsv.ffn_subvalues(model, cache, 1, pos_slice=[], incl_bias=bias, return_labels=True)
        assert stack.shape == (len(labels), 1, 0, 32)
        assert len(labels) == (48 if family == "llama" else 0) + bias
