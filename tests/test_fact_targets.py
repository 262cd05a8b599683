"""Facts with several answers and with what they are measured against: read, refused, evaluated, collected, recorded."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import zoo
from helpers.spoken import PROMPT, said, spoken
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.model_view import view_of
from tl_subvalues.study.facts import check_facts
from tl_subvalues.study.sources import read_rows

pytestmark = pytest.mark.any_release

PROMPTS = ["w30 w41 w52", "w33 w47", "w58 w39 w44 w36"]
TARGETS: list[Any] = ['["w35", "w46"]', "w40", '["w57", 31]']
AGAINST: list[Any] = ["w50", '["w36", "w37"]', "rest"]
IDS, OTHERS = [[35, 46], [40], [57, 31]], [[50], [36, 37], None]
SMALL: dict[str, Any] = {"rankings": ["log_prob_increase", "coefficient"], "ks": (3, 10), "prepend_bos": False}


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.model("llama")


def facts(against: bool = True) -> pd.DataFrame:
    table = pd.DataFrame({"prompt": PROMPTS, "target": TARGETS})
    return table.assign(against=AGAINST) if against else table


def in_file(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "facts.csv"
    table.to_csv(path, index=False)
    return path


def asked_of(table: Any, model: Any) -> list[tuple[Any, Any]]:
    checked = check_facts(view_of(model), read_rows(table), prepend_bos=False)
    return [(fact.asked.ids, fact.asked.against) for fact in checked.facts]


def test_cells_of_several_words(model: Any, tmp_path: Path) -> None:
    """JSON lists in a file, lists and arrays in a table: the same words; what merely looks like a list is text."""
    expected = [((35, 46), (50,)), ((40,), (36, 37)), ((57, 31), "rest")]
    assert asked_of(in_file(facts(), tmp_path), model) == expected
    lists = pd.DataFrame(
        {
            "prompt": [np.array([30, 41, 52]), [33, 47], torch.tensor([58, 39, 44, 36])],
            "target": [["w35", "w46"], np.int64(40), np.array([57, 31])],
            "against": ["w50", [np.int64(36), 37], "rest"],
        }
    )
    assert asked_of(lists, model) == expected
    assert asked_of(facts().assign(against=["", None, float("nan")]), model) == [(ids, None) for ids, _ in expected]


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ({"target": '["w35", "w46 w47"]'}, "2 tokens"),
        ({"target": '["w35", "w35"]'}, "twice"),
        ({"target": '["w35", 1.5]'}, "got float"),
        ({"target": '["w35", 99]'}, "outside the vocabulary"),
        ({"target": '["w35"'}, r"the target '\[\"w35\"'"),
        ({"target": "[]"}, r"the target '\[\]'"),
        ({"target": "w35", "against": '["w36", "w35"]'}, "in the target and in what it is measured against"),
        ({"target": "w35", "against": "w36 w37"}, "2 tokens"),
    ],
)
def test_bad_cells_are_named_by_line(cells: dict[str, str], says: str, model: Any, tmp_path: Path) -> None:
    """One sentence with the line; with on_error="skip" the others remain."""
    table = pd.concat([facts(), pd.DataFrame([{"prompt": "w30", "against": "w40", **cells}])], ignore_index=True)
    path = in_file(table, tmp_path)
    with pytest.raises(ValueError, match=f"line 5: .*{says}"):
        tlsv.evaluate(model, path, **SMALL)
    checked = check_facts(view_of(model), read_rows(path), on_error="skip", prepend_bos=False)
    assert (len(checked.facts), len(checked.skipped)) == (3, 1)


def test_a_mixture_is_refused(model: Any, tmp_path: Path) -> None:
    """Some rows with an against and some without have no mean together: one sentence that names one of each."""
    path = in_file(facts().assign(against=["w50", "", "rest"]), tmp_path)
    for call in (tlsv.evaluate, tlsv.collect):
        with pytest.raises(ValueError, match="line 2 has an against and line 3 has none"):
            call(model, path)


def test_other_separators_are_named(tmp_path: Path) -> None:
    """A file of a spreadsheet that writes commas in numbers says what it needs."""
    path = tmp_path / "facts.csv"
    for header, called in (
        ("prompt;target", "semicolons"),
        ('kind;"prompt";"target"', "semicolons"),
        ("prompt\ttarget", "tabs"),
    ):
        path.write_text(f"{header}\nw3, w4;w5\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f"facts.csv separates its columns by {called} where commas are needed"):
            read_rows(path)
    path.write_text("prompt;word\nw3;w4\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column prompt and target"):
        read_rows(path)


def without(labels: list[str], number: int) -> Tensor:
    """Log-probs of a fact with rows of W_out set to zero in a fresh Hugging Face model, in float64."""
    hand = zoo.hf_model("llama").double()
    with torch.no_grad():
        for label in labels:
            layer, neuron = map(int, label[1:].split("N"))
            hand.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0.0
        tokens = torch.tensor([[int(word[1:]) for word in PROMPTS[number].split()]])
        return hand(tokens).logits[0, -1].log_softmax(-1)


def measures(log_probs: Tensor, number: int, against: bool) -> dict[str, float]:
    p = log_probs.exp()
    ours = float(p[IDS[number]].sum())
    others = OTHERS[number] or [t for t in range(zoo.VOCAB) if t not in IDS[number]]
    best = float(p[IDS[number]].max())
    found = {"mrr": 1 / (1 + int((p > best).sum())), "prob": ours, "log_prob": math.log(ours)}
    return {**found, "log_prob_diff": math.log(ours) - math.log(float(p[others].sum()))} if against else found


@pytest.mark.slow
@pytest.mark.parametrize("against", [False, True])
def test_evaluate_by_hand(against: bool, model: Any) -> None:
    """Means of the measure that was asked for, against neurons cut out of the weights one fact at a time."""
    table = tlsv.evaluate(model, facts(against), **SMALL)
    assert ("log_prob_diff_after" in table) == ("log_prob_diff_before_high" in table) == against
    for _, row in table.iterrows():
        found = []
        for number, prompt in enumerate(PROMPTS):
            other = (OTHERS[number] or "rest") if against else None
            trace = tlsv.trace(model, prompt, IDS[number], against=other, prepend_bos=False)
            ranking = tlsv.RANKINGS[row["ranking"]]
            labels = ranking.top(trace, row["k"])
            if row["ranking"] == "log_prob_increase":
                assert labels == trace.ffn_neurons(row["k"])["label"].tolist()
            for when, cut in (("before", []), ("after", labels)):
                own = measures(without(cut, number), number, against)
                found.append({f"{name}_{when}": value for name, value in own.items()})
        means = pd.DataFrame(found).mean()
        for name, value in means.items():
            assert row[name] == pytest.approx(value, abs=2e-5), (row["ranking"], name)
            assert row[f"{name}_low"] <= row[name] + 1e-9
            assert row[f"{name}_high"] >= row[name] - 1e-9


@pytest.mark.slow
def test_all_rankings_of_a_difference(model: Any) -> None:
    """All but the one that ranks by a probability, which is refused by name and by function."""
    ours = {name for name, ranking in tlsv.RANKINGS.items() if ranking.of.unit == "ffn_neuron"}
    names = set(tlsv.evaluate(model, facts(), ks=(2,))["ranking"])
    assert names == ours - {"prob_increase"}
    assert set(tlsv.evaluate(model, facts(against=False), ks=(2,))["ranking"]) == ours
    with pytest.raises(ValueError, match="by probability increase are for targets by themselves"):
        tlsv.evaluate(model, facts(), rankings=["norm", "prob_increase"])
    with pytest.raises(ValueError, match="by probability increase are for targets by themselves"):
        tlsv.RANKINGS["prob_increase"](tlsv.trace(model, [3, 4], 5, against=6))


def test_collect_by_hand(model: Any) -> None:
    """Sums of increases of the measure, from each fact's own tables."""
    table = tlsv.collect(model, facts(), top=7, prepend_bos=False)
    assert list(table.columns) == ["unit", "label", "sum_increase", "n_facts", "mean_rank"]
    expected: dict[str, float] = {}
    for number, prompt in enumerate(PROMPTS):
        trace = tlsv.trace(model, prompt, IDS[number], against=OTHERS[number] or "rest", prepend_bos=False)
        for row in trace.ffn_neurons(7).itertuples():
            expected[row.label] = expected.get(row.label, 0.0) + row.log_prob_diff_increase
    neurons = table[table["unit"] == "ffn_neuron"].set_index("label")["sum_increase"]
    assert neurons.to_dict() == pytest.approx(expected, abs=1e-6)


def test_a_record_is_of_all_words(model: Any, tmp_path: Path) -> None:
    """Another word on either side is another run; the same is taken up."""
    record = tmp_path / "record"
    first = tlsv.collect(model, facts(), top=3, record=record)
    pd.testing.assert_frame_equal(tlsv.collect(model, facts(), top=3, record=record), first)
    for column, cells in (("target", ['["w35", "w45"]', *TARGETS[1:]]), ("against", ["w51", *AGAINST[1:]])):
        with pytest.raises(ValueError, match="another facts;"):
            tlsv.collect(model, facts().assign(**{column: cells}), top=3, record=record)
    with pytest.raises(ValueError, match="another facts;"):
        tlsv.collect(model, facts(against=False), top=3, record=record)


def test_random_is_another_for_other_words(model: Any) -> None:
    """The random ranking of a target's first word is not that of several words, nor of a difference."""
    from tl_subvalues.study.rankings import at_random

    one = tlsv.trace(model, [3, 4], 5)
    tops = [at_random(0).top(one, 5)]
    tops += [at_random(0).top(tlsv.trace(model, [3, 4], [5, 6]), 5)]
    tops += [at_random(0).top(tlsv.trace(model, [3, 4], 5, against=word), 5) for word in (6, 7, "rest")]
    assert len({tuple(top) for top in tops}) == 5
    assert at_random(0).top(tlsv.trace(model, [3, 4], [5]), 5) == tops[0]


@pytest.mark.parametrize("name", ["k", "ranking", "n_facts", "log_prob_after", "mrr_before_low", "rank_after"])
def test_groups_by_a_column_of_the_result_s(name: str, model: Any) -> None:
    """Refused, for it would overwrite the groups or be overwritten; any other name groups."""
    table = facts(against=False).assign(**{name: ["a", "b", "b"]})
    with pytest.raises(ValueError, match=f"by='{name}': the result has a column of that name itself; rename it"):
        tlsv.evaluate(model, table, by=name, **SMALL)
    grouped = tlsv.evaluate(model, table.rename(columns={name: "fact"}), by="fact", **SMALL)
    assert grouped.groupby("fact")["n_facts"].first().to_dict() == {"a": 1, "b": 2}
    assert not grouped.duplicated(["fact", "ranking", "k"]).any()


def test_a_missing_space_is_said_once(tmp_path: Path) -> None:
    """Of the first fact of many whose target lacks its space, with its place."""
    model = spoken(zoo.model("llama"), " ab", "ab", tmp_path)
    table = pd.DataFrame({"prompt": [[3], PROMPT, PROMPT], "target": [5, "ab", "ab"]})
    for call in (lambda: tlsv.evaluate(model, table, ks=[2], rankings="norm"), lambda: tlsv.collect(model, table)):
        (sentence,) = said(call, tlsv.LeadingSpaceWarning)
        assert sentence.startswith("row 1: the target 'ab' has no leading space")
