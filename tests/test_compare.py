"""Two traces side by side: every number against the two traces' own tables, what is missing, and what is refused."""

from typing import Any

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

LONG, SHORT = [5, 9, 7, 30, 41], [8, 9, 12]
UNITS = ("sublayer", "head", "head_position", "attn_neuron", "ffn_neuron")


def whole(trace: tlsv.Trace, unit: str) -> pd.DataFrame:
    """All rows of a unit's own table, by label."""
    if unit == "sublayer":
        return trace.layers().set_index("label")
    return getattr(trace, f"{unit}s")(top=None).set_index("label")


def same(ours: Any, theirs: Any) -> bool:
    return (pd.isna(ours) and pd.isna(theirs)) or ours == theirs


def check(table: pd.DataFrame, traces: tuple[tlsv.Trace, tlsv.Trace], unit: str, top: int) -> None:
    """Labels, order and every number of a comparison."""
    column = f"{traces[0].measure}_increase"
    tables = [whole(trace, unit) for trace in traces]
    few = unit in ("sublayer", "head")
    expected = {label for one in tables for label in (one.index if few else one.index[:top])}
    assert set(table["label"]) == expected
    assert not table["label"].duplicated().any()
    for row in table.to_dict("records"):
        for name, own in zip(("increase", "increase_other"), tables, strict=True):
            assert same(row[name], own[column].get(row["label"])), row
        assert same(row["difference"], row["increase"] - row["increase_other"])
        known = next(own.loc[row["label"]] for own in tables if row["label"] in own.index)
        for name in {"layer", "sublayer", "head", "dim", "position", "expert", "neuron"} & set(table.columns):
            assert same(row[name], known[name]), (name, row)
    sizes = table["difference"].abs()
    assert sizes.dropna().is_monotonic_decreasing
    assert not sizes[sizes.isna().cummax()].notna().any()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_two_prompts(family: str, unit: Any) -> None:
    """Each number is the one in the traces' tables, to the bit; what one has not is missing and last."""
    model = zoo.bridge(family)
    traces = tlsv.trace(model, LONG, 17), tlsv.trace(model, SHORT, 17)
    table = traces[0].compare(traces[1], unit, top=6)
    check(table, traces, unit, 6)
    check(traces[1].compare(traces[0], unit, top=6), traces[::-1], unit, 6)
    if unit in ("head_position", "attn_neuron"):
        later = table["position"] >= len(SHORT)
        assert later.any()
        assert table["increase_other"].isna().tolist() == later.tolist()
        assert table["token"].tolist() == [f"w{LONG[p]}" for p in table["position"]]
        assert [x for x in table["token_other"] if x is not pd.NA] == [
            f"w{SHORT[p]}" for p in table["position"][~later]
        ]
    assert ("expert" in table) == (unit == "ffn_neuron" and family == "mixtral")


def test_an_idle_expert_s_neurons_are_missing() -> None:
    """Where the other prompt's token is sent to other experts."""
    model = zoo.bridge("mixtral")
    one = tlsv.trace(model, LONG, 17)
    other = next(
        trace
        for last in range(5, 60)
        for trace in [tlsv.trace(model, [8, last], 17)]
        if set(trace.ffn_neurons(None)["expert"]) != set(one.ffn_neurons(None)["expert"])
    )
    table = one.compare(other, "ffn_neuron", top=None)
    check(table, (one, other), "ffn_neuron", 10**6)
    assert table["increase_other"].isna().any()
    assert np.isnan(table["difference"].iloc[-1])


@pytest.mark.parametrize("unit", UNITS)
def test_two_targets_of_one_measure(unit: Any) -> None:
    """Words, and differences of words; on one prompt nothing is missing."""
    model = zoo.model("llama")
    for against in (None, "rest", [9, 11]):
        traces = tlsv.trace(model, LONG, 17, against=against), tlsv.trace(model, LONG, [5, 8], against=against)
        table = traces[0].compare(traces[1], unit, top=4)
        check(table, traces, unit, 4)
        assert table["difference"].notna().all()
    same_trace = traces[0].compare(traces[0], unit)
    assert (same_trace["difference"] == 0).all()


def test_what_does_not_compare_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models, two measures, a unit and a number that there are not: one sentence each."""
    model = zoo.model("llama")
    trace = tlsv.trace(model, LONG, 17)
    with pytest.raises(ValueError, match="of two models"):
        trace.compare(tlsv.trace(zoo.model("llama", seed=1), LONG, 17))
    with pytest.raises(ValueError, match="two things, log_prob and log_prob_diff"):
        trace.compare(tlsv.trace(model, LONG, 17, against=5))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"unit is one of 'sublayer', 'head'.* got 'neuron'"):
        trace.compare(trace, "neuron")
    with pytest.raises(ValueError, match=r"takes another trace, .* got int"):
        trace.compare(3)
    with pytest.raises(ValueError, match="top is a positive number"):
        trace.compare(trace, "ffn_neuron", top=0)


def test_weights_that_changed_are_noticed() -> None:
    """A trace of the weights before is not compared with one of those after."""
    model = zoo.model("llama")
    trace = tlsv.trace(model, LONG, 17)
    with torch.no_grad():
        next(iter(model.parameters())).add_(0.0)
    with pytest.raises(ValueError, match="have changed since"):
        tlsv.trace(model, LONG, 17).compare(trace)
