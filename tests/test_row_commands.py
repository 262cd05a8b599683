"""The commands find, neuron and index: what the functions say, printed, and as JSON; one line for bad input."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.command import run, tiny_folder

import tl_subvalues as tlsv
from tl_subvalues.study.neuron_facts import facts_of

pytestmark = pytest.mark.any_release


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder, for --model."""
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> object:
    return tlsv.load_model(str(folder), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("lowest", [False, True])
def test_find(folder: Path, model: object, lowest: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of `tlsv.find` in order, each with the first words of the side that was asked about."""
    file = tmp_path / "found.json"
    asked = ["find", "w9", "w33", "--model", str(folder), "--top", "4", *(["--lowest"] if lowest else [])]
    assert run(*asked, "--json", str(file)) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    table = tlsv.find(model, ["w9", "w33"], top=4, largest=not lowest)
    said = json.loads(file.read_text(encoding="utf-8"))
    assert (said["schema"], said["searched"], said["by"]) == ("tl-subvalues/find/1", 96, "cosine")
    assert pd.DataFrame(said["rows"]).drop(columns="words").equals(table)
    trace = tlsv.trace(model, [5, 6], 9)
    for row in said["rows"]:
        words = trace.vocabulary(row["label"], 5, by="cosine")
        own = words[words["side"] == ("bottom" if lowest else "top")]
        assert [word["token_id"] for word in row["words"]] == own["token_id"].tolist()
        line = next(line for line in text.splitlines() if line.split()[:1] == [row["label"]])
        assert f"{row['value']:+.3f}" in line
        assert " ".join(repr(word["token"]) for word in row["words"]) in line
    assert run(*asked, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == said


def test_neuron(folder: Path, model: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides of the row, rows like it, and the facts that have it at the top."""
    facts, file = tmp_path / "facts.csv", tmp_path / "card.json"
    facts.write_text("prompt,target\nw3 w4 w5,w6\nw7 w8,w9\nw40 w41 w42,w43\n", encoding="utf-8")
    best = tlsv.trace(model, "w7 w8", "w9").ffn_neurons(top=1)["label"][0]
    asked = ["neuron", best, "--model", str(folder), "--words", "3", "--top", "2", "--facts", str(facts), "--of", "5"]
    assert run(*asked, "--json", str(file)) == 0
    text, said = capsys.readouterr().out, json.loads(file.read_text(encoding="utf-8"))
    assert said["schema"] == "tl-subvalues/neuron/1"
    words = tlsv.trace(model, [5, 6], 9).vocabulary(best, 3, by="cosine")
    for side in ("top", "bottom"):
        assert [word["token"] for word in said[side]] == words[words["side"] == side]["token"].tolist()
    alike = tlsv.similar(model, best, top=2)
    assert [(row["label"], row["cosine"]) for row in said["similar"]] == list(
        zip(alike["label"], alike["cosine"], strict=True)
    )
    assert [len(row["words"]["top"]) for row in said["similar"]] == [5, 5]
    found = facts_of(model, facts, best, top=5)
    assert said["facts"] == found.to_dict(orient="records")
    assert "w7 w8" in found["prompt"].tolist()
    assert f"In the top 5 of {len(found)} of 3 facts" in text
    for word in said["top"] + said["bottom"]:
        assert repr(word["token"]) in text
    assert run("neuron", "L1H2D3", "--model", str(folder)) == 0
    assert "facts" not in capsys.readouterr().out


def test_facts_of_a_neuron_are_those_of_its_traces(model: object) -> None:
    """Rank, increase and coefficient as in each fact's own table; an attention neuron's positions together."""
    facts = pd.DataFrame({"prompt": ["w3 w4 w5", "w7 w8", "w40 w41 w42"], "target": ["w6", "w9", "w43"]})
    traces = [tlsv.trace(model, prompt, target) for prompt, target in facts.itertuples(index=False)]
    for kind in ("ffn_neurons", "attn_neurons"):
        tables = [getattr(trace, kind)(top=40) for trace in traces]
        label = tables[0]["label"][2].partition("@")[0]
        found = facts_of(model, facts, label, top=40).set_index("prompt")
        for prompt, table in zip(facts["prompt"], tables, strict=True):
            own = table[table["label"].str.partition("@")[0] == label]
            assert (prompt in found.index) == (len(own) > 0)
            if len(own):
                assert found.loc[prompt, "rank"] == own.index[0] + 1
                assert found.loc[prompt, "increase"] == pytest.approx(own["log_prob_increase"].sum())
                assert found.loc[prompt, "coefficient"] == pytest.approx(own["coefficient"].iloc[0])
        assert found["increase"].is_monotonic_decreasing
    for label in ("L1H2", "0_mlp_out"):
        with pytest.raises(ValueError, match="is no neuron"):
            facts_of(model, facts, label)


def test_index(folder: Path, model: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of `tlsv.write_index`, and where it is."""
    out = tmp_path / "words.parquet"
    assert run("index", str(out), "--model", str(folder), "--words", "4", "--by", "cosine") == 0
    assert str(out) in capsys.readouterr().err
    own = tlsv.write_index(model, tmp_path / "own.parquet", k=4, by="cosine")
    assert pd.read_parquet(out).equals(pd.read_parquet(own))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["find", "w3 w4"], "the word 'w3 w4' is 2 tokens"),
        (["find", "w3", "--json", "there/found.json"], "folder to write into does not exist"),
        (["find"], "Missing argument"),
        (["find", "w3", "--top", "0"], "--top"),
        (["neuron", "L0H1"], "is no neuron"),
        (["neuron", "L0N900"], "neuron 900 is not below 48"),
        (["neuron", "x"], "is not a label"),
        (["neuron", "L0N1", "--facts", "nowhere.csv"], "there is no such file"),
        (["index", "words.csv"], "is a .parquet file"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, and what is wrong."""
    assert run(*arguments, "--model", str(folder)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert message in said.err
