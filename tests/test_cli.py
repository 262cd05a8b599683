"""The command, as a function and as a program: exit status, one line for bad input, JSON with all that is shown."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.command import run, tiny_folder

pytestmark = pytest.mark.any_release


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder, for --model."""
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_it_prints_every_section(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe: plain text, no box or colour, with layers, heads, neurons and what they write."""
    assert run("trace", "w3 w4 w5", "--target", "w6", "--model", str(folder), "--top", "4") == 0
    out = capsys.readouterr().out
    for heading in (
        "Sublayers",
        "Attention heads",
        "at one source position",
        "FFN neurons",
        "Attention neurons",
        "What switched",
        "Query",
    ):
        assert heading in out
    assert "\x1b" not in out
    assert not set(out) & set("│┃━─╭")
    tables = out.split("\n\n")[1:]
    assert [len(table.splitlines()) - 2 for table in tables] == [4] * 7


@pytest.mark.each_release
def test_json_holds_what_is_shown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Schema version, prompt, target, all tables with their words and certificates; the same numbers as the text."""
    target = tmp_path / "out.json"
    arguments = ["trace", "w3 w4 w5", "--target", "w6", "--model", str(folder), "--top", "3"]
    assert run(*arguments, "--json", str(target)) == 0
    text = capsys.readouterr().out
    data = json.loads(target.read_text(encoding="utf-8"))
    assert data["schema"] == "tl-subvalues/trace/1"
    assert data["target"] == "w6"
    assert data["tokens"][-3:] == ["w3", "w4", "w5"]
    for name in ("layers", "heads", "head_positions", "ffn_neurons", "attn_neurons"):
        assert len(data[name]["rows"]) == 3
        for row in data[name]["rows"]:
            assert f"{row['log_prob_increase']:+.3f}" in text
            assert {"label", "prob_increase", "promotes", "suppresses"} <= row.keys()
            assert len(row["promotes"]) == 5
    assert data["ffn_neurons"]["certificate"]["candidates"] == 96
    capsys.readouterr()
    assert run(*arguments, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == data


def test_words_follow_the_coefficient_s_sign(folder: Path, tmp_path: Path) -> None:
    """A neuron with a negative coefficient promotes the bottom of its row and suppresses the top."""
    target = tmp_path / "out.json"
    run("trace", "w3 w4 w5", "--target", "w6", "--model", str(folder), "--top", "40", "--json", str(target))
    rows = json.loads(target.read_text())["ffn_neurons"]["rows"]
    assert {row["coefficient"] > 0 for row in rows} == {True, False}
    for row in rows:
        promoted, suppressed = row["promotes"][0]["bs_value"], row["suppresses"][0]["bs_value"]
        assert (promoted - suppressed) * row["coefficient"] > 0


@pytest.mark.slow
def test_pictures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five files, each a picture that can be read; their names go to standard error."""
    target = tmp_path / "new" / "pictures"
    assert run("trace", "w3 w4", "--target", "w6", "--model", str(folder), "--plots", str(target)) == 0
    saved = sorted(path.name for path in target.iterdir())
    assert saved == ["activations.png", "curve.png", "heads.png", "layers.png", "neurons.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in target.iterdir())
    captured = capsys.readouterr()
    assert "saved" not in captured.out
    assert captured.err.count("saved ") == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trace"], "PROMPT"),
        (["trace", "w3", "--target", ""], "empty"),
        (["trace", "w3", "--target", "w4", "--target", "w4"], "twice"),
        (["trace", "w3", "--target", "w4", "--against", "w4"], "leave it out"),
        (["trace", "w3", "--against", "rest", "--against", "w4"], "--against rest"),
        (["nonsense"], "nonsense"),
        (["trace", "w3", "--target", "w4 w5"], "'w4' (4) + 'w5' (5)"),
        (["trace", "", "--target", "w4"], "empty"),
        (["trace", "w3", "--target", "w4", "--position", "9"], "position 9"),
        (["trace", "w3", "--target", "w4", "--scale", "other"], "other"),
        (["trace", "w3", "--target", "w4", "--top", "0"], "0"),
        (["trace", "w3", "--target", "w4", "--device", "abacus"], "abacus"),
        (["trace", "w3", "--target", "w4", "--dtype", "int3"], "int3"),
        (["trace", "w3", "--target", "w4", "--json", "no/such/folder/x.json"], "folder"),
        (["trace", "w3", "--target", "w4", "--plots", "pyproject.toml"], "pyproject.toml"),
        (["trace", "w3", "--target", "w4", "--model", "no-such/model"], "no-such/model"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, one line on standard error that names what is wrong, nothing on standard output."""
    model = ["--model", str(folder)] if "trace" in arguments and "--model" not in arguments else []
    assert run(*arguments, *model) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1


FACTS = "kind,prompt,target\na,w3 w4 w5,w6\nb,w3 w7,w8\nb,w9 w4,w5\n"


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three facts in a file, and a cache folder of the test's own."""
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "facts.csv"
    path.write_text(FACTS, encoding="utf-8")
    return path


@pytest.mark.slow
def test_evaluate(folder: Path, facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table in plain text, the same again from the record without a run, and in a file with all its columns."""
    arguments = ["evaluate", str(facts), "--model", str(folder), "--ks", "2,5", "--rankings", "norm", "--by", "kind"]
    assert run(*arguments) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert [line.split()[:3] for line in first.out.splitlines()][1:] == [
        [kind, name, k] for kind in "ab" for name in ("norm", "random") for k in ("2", "5")
    ]
    (record,) = (tmp_path / "cache" / "records").iterdir()
    assert record.read_bytes().count(b"\n") == 4
    changed = record.stat().st_mtime_ns
    assert run(*arguments) == 0
    assert capsys.readouterr().out == first.out
    assert record.stat().st_mtime_ns == changed
    out = tmp_path / "out.csv"
    assert run(*arguments, "--out", str(out), "--seed", "1") == 0
    table = pd.read_csv(out)
    assert {"mrr_before", "prob_after", "log_prob_after_low", "n_facts"} <= set(table.columns)
    assert (tmp_path / "out.csv.record.jsonl").is_file()


def test_collect(folder: Path, facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parquet with a row a unit; a bad line is named on standard error and left out, or stops it."""
    facts.write_text(FACTS + "c,w3,w4 w5\n", encoding="utf-8")
    out = tmp_path / "units.parquet"
    arguments = ["collect", str(facts), "--out", str(out), "--model", str(folder), "--top", "4"]
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "line 5: " in captured.err
    assert not out.exists()
    assert run(*arguments, "--on-error", "skip") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "facts.csv, line 5: " in captured.err
    assert pd.read_parquet(out).groupby("unit")["n_facts"].sum()["ffn_neuron"] == 3 * 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate"], "FACTS"),
        (["evaluate", "no-such-file.csv"], "no-such-file.csv"),
        (["evaluate", "FACTS", "--ks", "ten"], "ten"),
        (["evaluate", "FACTS", "--ks", "0"], "positive"),
        (["evaluate", "FACTS", "--rankings", "nrom"], "nrom"),
        (["evaluate", "FACTS", "--by", "sort"], "sort"),
        (["evaluate", "FACTS", "--out", "x.txt"], "parquet"),
        (["evaluate", "FACTS", "--record", "no/such/folder/x"], "folder"),
        (["evaluate", "FACTS", "--record", "FACTS"], "no record"),
        (["collect", "FACTS", "--top", "0"], "0"),
        (["collect", "FACTS", "--on-error", "ask"], "ask"),
    ],
)
def test_bad_input_over_facts_is_one_line(
    arguments: list[str], says: str, folder: Path, facts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and one line, whatever is wrong; the facts' file is left alone."""
    arguments = [str(facts) if argument == "FACTS" else argument for argument in arguments]
    assert run(*arguments, "--model", str(folder)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert facts.read_text(encoding="utf-8") == FACTS


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Help without arguments, for the command, and the package's version."""
    assert run() == 0
    assert "trace" in capsys.readouterr().out
    assert run("trace", "--help") == 0
    assert "--target" in capsys.readouterr().out
    assert run("--version") == 0
    assert "0." in capsys.readouterr().out


def test_a_prompt_without_its_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    """The line says what is missing."""
    assert run("trace", "The", "capital", "of") == 2
    assert "(capital of); put a text of several words in quotes." in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_module() -> None:
    """`python -m tl_subvalues` is the command."""
    done = subprocess.run([sys.executable, "-m", "tl_subvalues", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.startswith("tl-subvalues")) == (0, True)


@pytest.mark.each_release
@pytest.mark.slow
def test_the_installed_program(folder: Path) -> None:
    """The console script runs, is quiet on standard error and leaves no traceback on bad input."""
    program = shutil.which("tl-subvalues", path=str(Path(sys.executable).parent))
    assert program, "the package's console script is not installed"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    base = [program, "trace", "w3 w4", "--model", str(folder), "--target"]
    good = subprocess.run([*base, "w6"], capture_output=True, text=True, env=environment, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*base, "w6 w7"], capture_output=True, text=True, env=environment, check=False)
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
