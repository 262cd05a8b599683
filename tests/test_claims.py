"""demos/claims: what each experiment computes, that it resumes and can be checked again, and the page's tables."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.demos import DEMOS, demo

import tl_subvalues as tlsv
from tl_subvalues.decomposition.components import written

pytestmark = [pytest.mark.bridge, pytest.mark.any_release]
CLAIMS = (
    "a_sums",
    "b_curves",
    "c_scores",
    "c_settings",
    "c_combined",
    "c_rankings",
    "d_activation",
    "e_capital",
    "f_knock_out",
)
# Choices of c_settings.py as c_combined.py names them.
ONE_TURNED = {
    "base": "frozen_all_zero_everywhere",
    "mean": "frozen_all_mean_everywhere",
    "last": "frozen_all_zero_last",
    "recomputed": "anew_all_zero_everywhere",
    "early": "frozen_early_zero_everywhere",
}
FACT = pd.Series({"kind": "capital", "prompt": "The capital of France is", "target": "Paris", "country": "France"})


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Scripts of the folder, which import what they share from beside them."""
    monkeypatch.syspath_prepend(DEMOS / "claims")
    yield lambda name: demo(f"claims/{name}.py")
    for name in ("common", "gemma_3_270m"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trace() -> tlsv.Trace:
    model = tlsv.baevski18.load(DEMOS / "taught" / "converted", device="cpu")
    return tlsv.trace(model, FACT["prompt"], FACT["target"])


def test_sums(script: Any, trace: tlsv.Trace) -> None:
    """Within a band all words' changes differ by their bs-values; the words are counted by hand."""
    module = script("a_sums")
    found = module.work("taught", trace, FACT)
    assert found["additive_error"] < 1e-4
    row = trace.ffn_neurons(top=1).iloc[0]
    x, v = trace.run.site(int(row["layer"]), "mlp").residual, row["coefficient"] * written(trace.run, row["label"])
    pairs = module.subvalues(trace)
    torch.testing.assert_close(pairs[5][1], v)
    torch.testing.assert_close(pairs[5][0], x)
    shares = []
    for x, v in pairs:
        top = trace.readout.bs_values(v).topk(10).indices
        change = trace.readout.log_probs(x + v) - trace.readout.log_probs(x)
        shares.append(sum(float(change[word]) > 0 for word in top) / 10)
    assert found["top_words_up"] == pytest.approx(np.mean(shares), abs=1e-6)


def test_curves(script: Any, trace: tlsv.Trace) -> None:
    """R² is numpy's of a fitted line."""
    module = script("b_curves")
    found = module.work("taught", trace, FACT)
    values = trace.curve(trace.layers())["log_prob"].to_numpy()
    steps = np.arange(len(values))
    rest = values - np.polyval(np.polyfit(steps, values, 1), steps)
    assert found["layers_r2_log_prob"] == pytest.approx(1 - rest.var() / values.var(), abs=1e-6)
    assert found["layers_rising_log_prob"] == found["layers_rising_prob"] == (values[1:] > values[:-1]).mean()


@pytest.mark.slow
def test_scores(script: Any, trace: tlsv.Trace) -> None:
    """What a ranking's top ten do when they are ablated, and the difference of the two increases."""
    found = script("c_scores").work("taught", trace, FACT)
    top = trace.ffn_neurons(top=10)
    assert found["log_prob_increase_10"] == pytest.approx(trace.ablate(top)["log_prob_after"] - trace.log_prob)
    assert found["ahead_10"] == found["prob_increase_10"] - found["log_prob_increase_10"]


@pytest.mark.slow
def test_other_choices(script: Any, trace: tlsv.Trace) -> None:
    """Each choice is another ablation or ranking; damage is to other facts' answers, and none of a prompt's own."""
    module = script("c_settings")
    found = module.work("taught", trace, FACT)
    top = tlsv.RANKINGS["prob_increase"].top(trace, 10)
    last = trace.ablate(top, position=trace.position)["log_prob_after"] - trace.log_prob
    assert found["last_prob_increase"] == pytest.approx(last, abs=1e-6)
    assert found["heads_ahead"] == found["heads_prob_increase"] - found["heads_log_prob_increase"]
    first, early = module.all_and_early(trace, "log_prob_increase", 10)
    everything = trace.ffn_neurons(top=None)
    assert first == everything["label"].head(10).tolist()
    assert early == everything.loc[everything["layer"] < everything["layer"].max(), "label"].head(10).tolist()
    others = module.others("taught", FACT)
    assert len(others) == 4
    assert FACT["target"] not in others["target"].tolist()
    lost = []
    for _, other in others.iterrows():
        its = tlsv.trace(trace.model, other["prompt"], other["target"])
        lost.append(its.log_prob - its.ablate(top)["log_prob_after"])
    assert found["damage_prob_increase"] == pytest.approx(np.mean(lost), abs=1e-4)


@pytest.mark.slow
def test_choices_with_each_other(script: Any, trace: tlsv.Trace) -> None:
    """With one of them turned as by itself, with all of them as by hand."""
    found = script("c_combined").work("taught", trace, FACT)
    settings = script("c_settings")
    alone = settings.work("taught", trace, FACT)
    assert len(found) == 16
    for name, column in ONE_TURNED.items():
        assert found[column] == pytest.approx(alone[f"{name}_ahead"], abs=1e-5)
    anew = tlsv.trace(trace.model, FACT["prompt"], FACT["target"], scale="recomputed")
    how = {"mode": "mean", "reference": settings.others("taught", FACT)["prompt"].tolist(), "position": -1}
    log_prob, prob = (
        trace.ablate(settings.all_and_early(anew, ranking, 10)[1], **how)["log_prob_after"]
        for ranking in ("log_prob_increase", "prob_increase")
    )
    assert found["anew_early_mean_last"] == pytest.approx(prob - log_prob, abs=1e-5)


def test_choices_have_the_same_numbers_twice(script: Any) -> None:
    """Facts that both tables have."""
    common = script("common")
    both = pd.merge(*(pd.read_csv(common.HERE / f"{name}.csv") for name in ("c_settings", "c_combined")), on=common.KEY)
    assert set(both["model"]) == set(common.MODELS)
    for name, column in ONE_TURNED.items():
        assert np.allclose(both[f"{name}_ahead"], both[column], atol=common.AGAIN, rtol=common.AGAIN)


@pytest.mark.slow
def test_every_ranking(script: Any, trace: tlsv.Trace) -> None:
    """What ablating by each does, and to others' answers: of several prompts at once as of each alone."""
    module = script("c_rankings")
    found = module.work("taught", trace, FACT)
    assert {name.rpartition("_")[0] for name in found} == {*tlsv.RANKINGS} - {"norm", "coefficient"}
    rest = module.others("taught", FACT)
    assert rest["prompt"].str.split().str.len().nunique() > 1
    for ranking, k in (("integrated_gradients", 10), ("head_log_prob_increase", 3)):
        top = tlsv.RANKINGS[ranking].top(trace, k)
        assert found[f"{ranking}_{k}"] == pytest.approx(trace.ablate(top)["log_prob_after"] - trace.log_prob, abs=1e-5)
        lost = []
        for _, other in rest.iterrows():
            its = tlsv.trace(trace.model, other["prompt"], other["target"])
            lost.append(its.log_prob - its.ablate(top)["log_prob_after"])
        assert found[f"{ranking}_others"] == pytest.approx(np.mean(lost), abs=1e-4)
    assert "total_effect_gradient_others" not in found  # neurons at positions, which other prompts have not


def test_activation(script: Any, trace: tlsv.Trace) -> None:
    """The last earlier part, which nothing else stands behind, changes a coefficient as predicted."""
    module = script("d_activation")
    row = trace.ffn_neurons(top=1).iloc[0]
    layer = int(row["layer"])
    scores = trace.activations(row["label"], by="head")
    change = module.predicted(scores, row["coefficient"])
    last = scores[scores["label"].str.startswith(f"L{layer}H")].index[0]
    part = scores.loc[last, "label"]
    measured = module.without(trace, part, layer, int(row["neuron"])) - row["coefficient"]
    # but for the norm's scale, which the prediction holds
    assert measured == pytest.approx(change[last], rel=0.25, abs=0.02)
    assert set(module.work("taught", trace, FACT)) == {"correlation", "slope", "same_sign", "top_measured"}


def test_capital(script: Any, trace: tlsv.Trace) -> None:
    """Positions of a name in several tokens, words of a country, and shares that are shares."""
    module = script("e_capital")
    assert module.subject_positions(trace, "France") == [4]
    pieces = type("T", (), {"str_tokens": ["<s>", "The", " capital", " of", " Uz", "bek", "istan", " is"]})
    assert module.subject_positions(pieces, "Uzbekistan") == [4, 5, 6]
    ids = module.words(trace.model, "taught")
    own = module.countries().index[module.countries()["country"] == "France"][0]
    assert ids.loc[own].tolist() == [trace.model.to_single_token(word) for word in ("France", "French", "Paris")]
    v = torch.zeros(trace.model.cfg.d_model)
    v += written(trace.run, trace.head_positions(top=1)["label"].iloc[0])
    related, kind = module.readings(trace, v, ids, own)
    turned = module.readings(trace, -v, ids, own)
    assert (related, kind) == (pytest.approx(-turned[0]), pytest.approx(-turned[1]))
    found = module.work("taught", trace, FACT)
    assert 0 <= found["at_subject"] <= 1


def test_knock_out(script: Any, trace: tlsv.Trace) -> None:
    """Random neurons are as many, different and the same ones each time."""
    module = script("f_knock_out")
    drawn = module.drawn(trace, 20, 10)
    assert drawn == module.drawn(trace, 20, 10)
    assert (len(set(drawn)), sum("N" in label for label in drawn)) == (30, 10)
    found = module.work("taught", trace, FACT)
    assert found["value_prob"] == pytest.approx(np.exp(found["value"]))
    assert found["value"] < found["random_value"]


@pytest.mark.slow
def test_a_run_resumes_and_is_checked(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record whose last line was cut short loses that fact alone; a number that is another is found."""
    module, common = script("b_curves"), script("common")
    monkeypatch.setattr(common, "HERE", tmp_path)
    calls: list[str] = []

    def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
        calls.append(fact["prompt"])
        return module.work(name, trace, fact)

    def run(*arguments: str) -> pd.DataFrame:
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["b_curves.py", "--models", "taught", *arguments])
        common.run("b", work)
        return pd.read_csv(tmp_path / "b.csv")

    first = run("--facts", "3")
    assert len(first) == len(calls) == 3
    record = tmp_path / "b.taught.record.jsonl"
    record.write_text(record.read_text()[:-20])
    (tmp_path / "b.csv").unlink()
    again = run("--facts", "4")
    assert len(calls) == 2
    record.unlink()  # as on another machine, which has the table alone
    assert len(run("--facts", "5")) == 5
    assert len(calls) == 1
    again = run("--facts", "4")
    pd.testing.assert_frame_equal(again.head(3), first)
    assert len(run("--facts", "4", "--minutes", "0")) == 4
    assert calls == []
    assert len(run("--check", "2")) == 4
    assert len(calls) == 2
    again.loc[:, "layers_r2_log_prob"] += 0.1
    again.to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(SystemExit, match="layers_r2_log_prob was"):
        run("--check", "1")


def test_facts_are_dealt_in_turn(script: Any) -> None:
    """The first few are of all kinds; capitals come with their countries."""
    common = script("common")
    facts = common.facts_of("smollm2")
    assert facts["answered"].all()
    assert facts.head(7)["kind"].nunique() == 7
    capitals = common.capitals_of("taught")
    assert (capitals["kind"] == "capital").all()
    assert all(country in prompt for country, prompt in zip(capitals["country"], capitals["prompt"], strict=True))


@pytest.mark.slow
def test_the_page_s_figures_are_the_tables(script: Any) -> None:
    """Every table stands on the page as the CSVs have it, all of their columns shown; prose has no decimals."""
    tables = script("tables")
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.with_tables(text) == text
    prose = text
    assert {*tables.CLAIMS, "c_rankings", "c_combined"} == set(CLAIMS)
    for claim, made in {
        **{claim: tables.table(claim) for claim in tables.CLAIMS},
        "c_combined": tables.combined(),
    }.items():
        block = f"<!-- {claim} -->\n{made}\n<!-- end -->"
        assert block in text
        prose = prose.replace(block, "")
        columns = set(pd.read_csv(tables.HERE / f"{claim}.csv").columns) - {"model", "kind", "prompt", "target"}
        assert set(tables.CLAIMS.get(claim, columns)) <= columns
        assert f"claims/{claim}.py" in text
    for other in ("2312.12141", "TransformerLens 4.3"):
        prose = prose.replace(other, "")
    assert re.findall(r"\d\.\d", prose) == []


@pytest.mark.slow
def test_every_ranking_is_on_its_page(script: Any) -> None:
    """As the CSV has it, and all that it has."""
    tables = script("tables")
    text = tables.RANKINGS_PAGE.read_text(encoding="utf-8")
    assert tables.with_tables(text) == text
    columns = set(pd.read_csv(tables.HERE / "c_rankings.csv").columns) - {"model", "kind", "prompt", "target"}
    shown = set()
    for block, (ks, names) in tables.RANKED.items():
        assert f"<!-- {block} -->\n{tables.ranked(block)}\n<!-- end -->" in text
        shown |= {f"{name}_{k}" for name in names for k in (*ks, "others")}
    assert columns <= shown
    assert {name.rpartition("_")[0] for name in shown} == {*tlsv.RANKINGS} - {"norm", "coefficient"}


@pytest.mark.slow
def test_some_facts_again(script: Any) -> None:
    """Of the taught model, which needs nothing fetched: what is in the CSVs comes out again."""
    common = script("common")
    for claim in CLAIMS:
        module = script(claim)
        table = pd.read_csv(common.HERE / f"{claim}.csv")
        facts = common.capitals_of if claim == "e_capital" else common.facts_of
        number = 1 if claim == "c_rankings" else 3
        assert common.again(table, number, ["taught"], module.work, facts) < 2 * common.AGAIN


def test_a_record_s_lines_are_facts(script: Any, tmp_path: Path) -> None:
    """What is no line of a record is passed over."""
    path = tmp_path / "r.jsonl"
    row = {"model": "m", "kind": "k", "prompt": "p", "target": "t", "x": 1.0}
    path.write_text("[]\n\n{\n" + json.dumps(row))
    assert list(script("common").recorded(path).values()) == [row]
