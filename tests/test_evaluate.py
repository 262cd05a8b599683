"""Comparing rankings over facts, and collecting units: by hand, in groups, and after a kill."""

import signal
import subprocess
import sys
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import zoo
from helpers.facts import SMALL, make_facts
from torch import Tensor

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

TESTS = Path(__file__).parent


FACTS = make_facts(5)


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.model("llama")


def without(model: Any, prompt: str, target: str, labels: list[str]) -> tuple[float, int]:
    """Log-prob and rank of the target, with W_out rows of FFN neurons set to zero in a fresh Hugging Face model."""
    hand = zoo.hf_model("llama")
    with torch.no_grad():
        for label in labels:
            layer, neuron = map(int, label[1:].split("N"))
            hand.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0.0
        tokens = torch.tensor([[int(word[1:]) for word in prompt.split()]])
        own: Tensor = hand(tokens).logits[0, -1].double().log_softmax(-1)
    token = int(target[1:])
    return float(own[token]), 1 + int((own > own[token]).sum())


@pytest.mark.each_release
def test_evaluate_by_hand(model: Any) -> None:
    """Every mean, against neurons cut out of the weights one fact at a time."""
    table = tlsv.evaluate(model, FACTS, **SMALL)
    names = ["log_prob_increase", "coefficient", "random"]
    assert list(zip(table["ranking"], table["k"], strict=True)) == [(name, k) for name in names for k in (3, 10)]
    assert (table["n_facts"] == 5).all()
    for _, row in table.iterrows():
        outcomes = []
        for prompt, target in zip(FACTS["prompt"], FACTS["target"], strict=True):
            trace = tlsv.trace(model, prompt, target, prepend_bos=False)
            labels = tlsv.RANKINGS[row["ranking"]].top(trace, row["k"])
            outcomes.append((*without(model, prompt, target, []), *without(model, prompt, target, labels)))
        before, rank_before, after, rank_after = np.array(outcomes).T
        for measure, values in (
            ("log_prob_before", before),
            ("log_prob_after", after),
            ("prob_before", np.exp(before)),
            ("prob_after", np.exp(after)),
            ("mrr_before", 1 / rank_before),
            ("mrr_after", 1 / rank_after),
        ):
            assert row[measure] == pytest.approx(values.mean(), abs=1e-5)
            assert values.min() - 1e-5 <= row[f"{measure}_low"] <= row[measure] + 1e-9
            assert row[measure] - 1e-9 <= row[f"{measure}_high"] <= values.max() + 1e-5
    best, random = (table[table["ranking"] == name].set_index("k")["log_prob_after"] for name in (names[0], "random"))
    assert (best < random).all()


def test_intervals_are_the_bootstrap_s(model: Any) -> None:
    """Of 200 facts, the interval is about ± 1.96 standard errors, and reproducible."""
    from tl_subvalues.study.evaluate import summary

    generator = np.random.default_rng(1)
    rows = pd.DataFrame({"ranking": "x", "k": 3, "rank_before": 1, "rank_after": generator.integers(1, 9, 200)})
    rows["log_prob_before"], rows["log_prob_after"] = -1.0, generator.normal(-3.0, 2.0, 200)
    first, again, other = (summary(rows.copy(), [], seed).iloc[0] for seed in (0, 0, 1))
    error = rows["log_prob_after"].std() / 200**0.5
    assert first["log_prob_after_low"] == pytest.approx(first["log_prob_after"] - 1.96 * error, abs=0.3 * error)
    assert first["log_prob_after_high"] == pytest.approx(first["log_prob_after"] + 1.96 * error, abs=0.3 * error)
    assert first.equals(again)
    assert first["log_prob_after_low"] != other["log_prob_after_low"]
    assert first["log_prob_before_low"] == first["log_prob_before_high"] == -1.0


@pytest.mark.slow
def test_groups_files_and_skipped_rows(model: Any, tmp_path: Path) -> None:
    """One set of rows for each kind, the same in CSV and Parquet; bad lines left out and listed."""
    path, out = tmp_path / "facts.csv", tmp_path / "out.parquet"
    FACTS.to_csv(path, index=False)
    path.write_text(path.read_text() + "odd,w3,w4 w5\n")
    with pytest.raises(ValueError, match="line 7"):
        tlsv.evaluate(model, path, **SMALL)
    table = tlsv.evaluate(model, str(path), by="kind", on_error="skip", out=out, **SMALL)
    assert [problem.split(":")[0] for problem in table.attrs["skipped"]] == ["line 7"]
    assert table.columns[0] == "kind"
    assert table.groupby("kind")["n_facts"].first().to_dict() == {"even": 3, "odd": 2}
    even = tlsv.evaluate(model, FACTS[FACTS["kind"] == "even"], **SMALL)
    ours = table[table["kind"] == "even"].drop(columns="kind").reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, even, check_exact=False, atol=1e-6)
    pd.testing.assert_frame_equal(pd.read_parquet(out), table)
    # The record is kept: another grouping of it costs no run, and a CSV holds the same.
    record, csv = tmp_path / "out.parquet.record.jsonl", tmp_path / "out.csv"
    again = tlsv.evaluate(model, path, on_error="skip", record=record, out=csv, **SMALL)
    pd.testing.assert_frame_equal(again, tlsv.evaluate(model, FACTS, **SMALL))
    pd.testing.assert_frame_equal(pd.read_csv(csv), again, check_exact=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, out.name, csv.name, record.name])


def test_a_record_of_other_settings_or_weights_is_refused(model: Any, tmp_path: Path) -> None:
    """Each of them named; and another model with the same name is another model."""
    record = tmp_path / "record.jsonl"
    tlsv.evaluate(model, FACTS, record=record, **SMALL)
    for change, named in (({"ks": (3,)}, "ks"), ({"seed": 2}, "seed"), ({"rankings": ["norm"]}, "rankings")):
        with pytest.raises(ValueError, match=f"another {named};"):
            tlsv.evaluate(model, FACTS, record=record, **{**SMALL, **change})
    with pytest.raises(ValueError, match="another facts;"):
        tlsv.evaluate(model, make_facts(4), record=record, **SMALL)
    with pytest.raises(ValueError, match="another weights;"):
        tlsv.evaluate(zoo.bridge("llama", seed=1), FACTS, record=record, **SMALL)
    with pytest.raises(ValueError, match="another what,"):
        tlsv.collect(model, FACTS, record=record, prepend_bos=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"ks": ()}, "ks"),
        ({"ks": (0,)}, "ks"),
        ({"ks": (3, 3)}, "different"),
        ({"rankings": ["nrom"]}, "nrom"),
        ({"by": "sort"}, "'sort'"),
        ({"out": "x.xlsx"}, "parquet"),
        ({"out": "no/such/x.csv"}, "folder"),
        ({"scale": "other"}, "scale"),
    ],
)
def test_bad_input(arguments: dict[str, Any], says: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before anything runs; annotations are not enforced, as for users."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=says):
        tlsv.evaluate(model, FACTS, **arguments)


def test_more_than_there_are_is_said(model: Any) -> None:
    """Eight heads: of k = 8 nothing is said, of k = 50 once, and its rows are those of all heads."""
    asked = {"rankings": ["head_log_prob_increase"], "unit": "head", "prepend_bos": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", tlsv.SubvaluesWarning)
        whole = tlsv.evaluate(model, FACTS, ks=(2, 8), **asked)
    with pytest.warns(tlsv.SubvaluesWarning, match="k = 50 is more than the 8 attention heads") as caught:
        table = tlsv.evaluate(model, FACTS, ks=(8, 50), **asked)
    assert len({str(one.message) for one in caught}) == 1
    after = table.set_index(["ranking", "k"])["log_prob_after"]
    assert after.xs(50, level="k").tolist() == pytest.approx(after.xs(8, level="k").tolist())
    assert after.xs(8, level="k").tolist() == pytest.approx(whole[whole["k"] == 8]["log_prob_after"].tolist())


@pytest.mark.parametrize("positions", [False, True])
def test_collect_by_hand(model: Any, positions: bool) -> None:
    """Sums, counts and mean ranks, from each fact's own tables."""
    expected: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for prompt, target in zip(FACTS["prompt"], FACTS["target"], strict=True):
        trace = tlsv.trace(model, prompt, target, prepend_bos=False)
        tables = {"ffn_neuron": trace.ffn_neurons(7), "attn_neuron": trace.attn_neurons(7), "head": trace.heads(7)}
        for unit, table in tables.items():
            table = table.assign(rank=range(1, len(table) + 1))
            if not positions:
                table = table.assign(label=table["label"].str.replace(r"@\d+", "", regex=True))
            for label, rows in table.groupby("label"):
                found = float(rows["log_prob_increase"].sum()), int(rows["rank"].min())
                expected.setdefault((unit, str(label)), []).append(found)
    table = tlsv.collect(model, FACTS, top=7, positions=positions, prepend_bos=False)
    assert list(table.columns) == ["unit", "label", "sum_increase", "n_facts", "mean_rank"]
    assert len(table) == len(expected)
    for row in table.itertuples():
        found = expected[row.unit, row.label]
        assert row.n_facts == len(found)
        assert row.sum_increase == pytest.approx(sum(increase for increase, _ in found), abs=1e-5)
        assert row.mean_rank == pytest.approx(np.mean([rank for _, rank in found]))
    assert table["n_facts"].max() > 1
    assert list(dict.fromkeys(table["unit"])) == ["ffn_neuron", "attn_neuron", "head"]
    assert all(one["sum_increase"].is_monotonic_decreasing for _, one in table.groupby("unit"))


# Run in a process of its own, to be killed.
SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from helpers import surroundings, zoo
import tl_subvalues as tlsv
from helpers.facts import SMALL, make_facts
model, facts = zoo.model("llama"), make_facts(60)
tlsv.evaluate(model, facts, out={folder!r} + "/evaluate.csv", **SMALL)
tlsv.collect(model, facts, top=9, prepend_bos=False, out={folder!r} + "/collect.parquet")
"""


@pytest.mark.slow
def test_killed_and_resumed_it_is_as_one_run(model: Any, tmp_path: Path) -> None:
    """kill -9 in the middle of evaluate, again in the middle of collect; the third start finishes both."""
    command = [sys.executable, "-c", SCRIPT.format(tests=str(TESTS), folder=str(tmp_path))]
    facts = make_facts(60)
    for name in ("evaluate.csv", "collect.parquet"):
        record = tmp_path / f"{name}.record.jsonl"
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not (record.is_file() and record.read_bytes().count(b"\n") > 8):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 8 < record.read_bytes().count(b"\n") < 60
        assert not (tmp_path / name).exists()
    evaluated = tlsv.evaluate(model, facts, out=tmp_path / "evaluate.csv", **SMALL)
    collected = tlsv.collect(model, facts, top=9, prepend_bos=False, out=tmp_path / "collect.parquet")
    for name in ("evaluate.csv", "collect.parquet"):
        assert (tmp_path / f"{name}.record.jsonl").read_bytes().count(b"\n") == 61
    pd.testing.assert_frame_equal(evaluated, tlsv.evaluate(model, facts, **SMALL), rtol=1e-5, atol=1e-6)
    once = tlsv.collect(model, facts, top=9, prepend_bos=False)
    # To the rounding of batches that were cut elsewhere: what was recorded before the kill stands in another one.
    pd.testing.assert_frame_equal(collected, once, rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "collect.parquet"), collected, check_exact=True)


@pytest.mark.slow
def test_collect_does_not_grow_with_the_facts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held after many facts is one sum a unit: no item of a fact outlives it."""

    class Item(dict[str, Any]):
        """A dictionary that a weak reference can watch."""

    items: list[weakref.ref[Item]] = []
    held: list[int] = []

    def watched(path: Any, settings: Any, count: int, work: Any, size: int) -> Any:
        for number in range(count):
            item = Item(work([number])[0])
            items.append(weakref.ref(item))
            held.append(sum(one() is not None for one in items))
            yield item

    monkeypatch.setattr(sys.modules["tl_subvalues.study.collect"], "resumed", watched)
    tlsv.collect(model, make_facts(12), top=4, prepend_bos=False)
    assert len(held) == 12
    assert max(held) <= 2
