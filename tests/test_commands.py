"""What the commands ask, say and show: targets, terminals of 80 columns, long prompts, Ctrl-C, hostile text."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import zoo
from helpers.command import run
from rich.console import Console

import tl_subvalues as tlsv
from tl_subvalues.command import fact_tables, report, screen, start_up
from tl_subvalues.labels import NAMES
from tl_subvalues.study import evaluate as evaluation

pytestmark = pytest.mark.any_release

FACTS = """kind,prompt,target,against
a,w3 w4 w5,w6,w9
b,w3 w7,"[""w8"", ""w2""]",w9
b,w9 w4,w5,"[""w6"", ""w7""]"
"""


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three facts in a file, two with several words, and a cache folder of the test's own."""
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "facts.csv"
    path.write_text(FACTS, encoding="utf-8")
    return path


def traced(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    """The JSON of a trace."""
    assert run("trace", *arguments, "--top", 3, "--json", "-") == 0
    return json.loads(capsys.readouterr().out)


def test_a_bare_prompt(folder: Path, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a target, the model's most probable next token is traced, and the headline says so."""
    best = tlsv.trace(model, "w3 w4 w5")
    data = traced(capsys, "w3 w4 w5", "--model", folder)
    assert (data["target"], data["rank"], data["target_chosen"]) == (best.target_token, 1, True)
    assert not traced(capsys, "w3 w4 w5", "--target", best.target_token, "--model", folder)["target_chosen"]
    assert run("trace", "w3 w4 w5", "--model", folder, "--top", 1) == 0
    assert f"-> {best.target_token!r} (the model's most probable next token)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "target", "against"),
    [
        (["--target", "w6", "--target", "w7"], ["w6", "w7"], None),
        (["--target", "w6", "--against", "w7"], "w6", "w7"),
        (["--target", "w6", "--target", "w8", "--against", "w7", "--against", "w9"], ["w6", "w8"], ["w7", "w9"]),
        (["--target", "w6", "--against", "rest"], "w6", "rest"),
        (["--against", "rest"], None, "rest"),
    ],
)
def test_several_targets_and_others(
    options: list[str], target: Any, against: Any, folder: Path, model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options ask what `trace` asks: the same measure, value and top neurons, in JSON and text."""
    expected = tlsv.trace(model, "w3 w4 w5", target, against=against)
    data = traced(capsys, "w3 w4 w5", *options, "--model", folder)
    assert data["measure"] == expected.measure
    assert (data["target_tokens"], data["against_tokens"]) == (expected.target_tokens, expected.against_tokens)
    assert data["log_prob"] == pytest.approx(expected.log_prob, abs=1e-5)
    assert data["log_prob_diff"] == pytest.approx(expected.log_prob_diff, abs=1e-5)
    column = f"{expected.measure}_increase"
    rows = expected.ffn_neurons(3)
    assert [row["label"] for row in data["ffn_neurons"]["rows"]] == rows["label"].tolist()
    assert [row[column] for row in data["ffn_neurons"]["rows"]] == pytest.approx(rows[column].tolist(), abs=1e-5)
    assert run("trace", "w3 w4 w5", *options, "--model", folder, "--top", 3) == 0
    text = capsys.readouterr().out
    assert f"{rows[column].iloc[0]:+.3f}" in text
    assert ("Δ diff." in text) == (against is not None)
    if against is not None:
        others = "the rest" if against == "rest" else " or ".join(map(repr, expected.against_tokens or []))
        assert f"against {others}\n" in text
        assert f"- log p({others}) = {expected.log_prob_diff:+.3f}" in text


@pytest.mark.slow
def test_facts_with_others(facts: Path, folder: Path, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Facts of several words against others: `evaluate` and `collect` report the difference as the functions do."""
    assert run("evaluate", facts, "--model", folder, "--ks", "2", "--rankings", "norm") == 0
    table = tlsv.evaluate(model, str(facts), ks=[2], rankings=["norm"])
    out = capsys.readouterr().out
    assert "log_prob_diff_after" in out
    assert all(f"{value:.4g}" in out for value in table["log_prob_diff_after"])
    assert run("collect", facts, "--model", folder, "--top", "3") == 0
    assert f"{tlsv.collect(model, str(facts), top=3)['sum_increase'].iloc[0]:.4g}" in capsys.readouterr().out


def test_a_record_is_of_its_answers(facts: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record of the same prompts with another `against`, or another answer beside, is not taken up."""
    arguments = ["evaluate", facts, "--model", folder, "--ks", "2", "--rankings", "norm", "--record", f"{facts}.jsonl"]
    assert run(*arguments) == 0
    for old, new in (("w6,w9", "w6,w5"), ('""w8"", ""w2""', '""w8"", ""w4""')):
        facts.write_text(FACTS.replace(old, new), encoding="utf-8")
        capsys.readouterr()
        assert run(*arguments) == 2
        assert "another facts" in capsys.readouterr().err


def test_no_word_is_broken_in_80_columns() -> None:
    """Words with leading spaces stand whole in lines that fit, however many columns are beside them."""
    words = [" strugg", " enthus", "dissemination", " ne cess", " authent", ' quo"te', "x" * 30]
    columns = {"label": ["L24N1005"] * 2, "Δ log p": ["+1.416"] * 2, "writes": [[*map(repr, words)], ["'a'"]]}
    for width in (60, 80, 120):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(screen.drawn(columns, numeric={"Δ log p"}))
        text = console.export_text()
        assert all(repr(word) in text for word in words)
        assert max(map(len, text.splitlines())) <= width


def test_a_long_prompt_is_cut(model: Any) -> None:
    """Of 60 tokens the last are shown, those that tables name, and gaps as dots; a short prompt whole."""
    prompt = " ".join(f"w{3 + i % 7}" for i in range(60))
    made = report.make_report(tlsv.trace(model, prompt, "w6"), model="tiny", top=3)
    for text in (screen.to_text(made), screen.render(made, Console(width=80))):
        head = text.split("log p =")[0]
        shown = [int(n) for n in re.findall(r"(\d+):'", head)]
        assert "…" in head
        assert len(shown) <= 40
        assert shown == sorted(shown)
        assert set(range(made.position - 7, made.position + 1)) <= set(shown)
        assert made.tables["head_positions"]["position"].iloc[0] in shown
    short = report.make_report(tlsv.trace(model, "w3 w4", "w6"), model="tiny", top=3)
    assert "…" not in screen.to_text(short)


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.773, "77.3%"),
        (0.0004, "0.040%"),
        (1e-9, "1e-09"),
        (0.99999, "99.9990%"),
        (0.9997, "99.970%"),
        (1.0, "100%"),
        (0.0, "0"),
    ],
)
def test_small_probabilities_are_not_zero(p: float, text: str) -> None:
    """As many digits as it takes to tell a probability from 0 and from 1."""
    assert screen.probability(p) == text


def test_no_empty_column_of_what_is_read(tokens: Any) -> None:
    """Where no row reads a token, there is no column `reads`; where some do, theirs are quoted."""
    made = report.make_report(tlsv.trace(zoo.model("llama"), tokens, 5), model="tiny", top=3)
    table = made.tables["activations"].assign(token=["", "", ""])
    assert "reads" not in screen._columns(table)
    with_tokens = table.assign(token=["", "w3", ""])
    assert screen._columns(with_tokens)["reads"] == ["", "'w3'", ""]
    for unit, heading in (("FFN neurons", "at"), (NAMES["head_position"], "reads"), (NAMES["attn_neuron"], "reads")):
        with_tokens.attrs["unit"] = unit  # effects of what is added at a token, and of what reads it
        assert screen._columns(with_tokens)[heading] == ["", "'w3'", ""]


def test_tables_over_facts_fit_a_terminal(
    model: Any, facts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal of 80 columns: no hard-wrapped lines, one part a group or kind, all numbers there."""
    monkeypatch.setenv("COLUMNS", "80")
    table = tlsv.evaluate(model, str(facts), ks=[2, 5], rankings=["norm"], by="kind")
    fact_tables.show(table, terminal=True)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert [line.split(";")[0] for line in out.splitlines() if "nothing ablated" in line] == [
        "kind a, 1 fact",
        "kind b, 2 facts",
    ]
    assert all(f"{value:.3f}" in out for value in table["log_prob_diff_after"])
    units = tlsv.collect(model, str(facts), top=20)
    fact_tables.show(units, terminal=True)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert all(label in out for label in units[units["unit"] == "head"]["label"].head(4))
    assert f"and {(units['unit'] == 'ffn_neuron').sum() - 10:,} more" in out


def test_collect_says_what_it_wrote(
    facts: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line on standard error when a table is written."""
    out = tmp_path / "units.csv"
    assert run("collect", facts, "--model", folder, "--top", 3, "--out", out) == 0
    assert capsys.readouterr().err == f"tl-subvalues: {len(pd.read_csv(out)):,} rows are written to {out}\n"


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept(
    facts: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many facts are in the record and how to go on; the same command then takes up what is there."""
    done: list[int] = []
    ablations = evaluation.ablations

    def interrupted(*arguments: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(0)
        return ablations(*arguments)

    arguments = ["evaluate", facts, "--model", folder, "--ks", "2", "--rankings", "norm", "--batch-size", "1"]
    monkeypatch.setattr(evaluation, "ablations", interrupted)
    assert run(*arguments) == 130
    err = capsys.readouterr().err
    assert re.search(r"stopped; 1 fact is kept in \S+\.jsonl, from where the same command goes on\.\n", err)
    monkeypatch.setattr(evaluation, "ablations", lambda *given: done.append(0) or ablations(*given))
    assert run(*arguments) == 0
    assert len(done) == 3


def test_ctrl_c_in_a_trace(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One word and status 130, no traceback."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tl_subvalues.command.asking.load", interrupt)
    assert run("trace", "w3", "--model", folder) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "tl-subvalues: stopped."


ESCAPE = "\x1b[31mred\x1b]0;title\x07"


@pytest.mark.slow
def test_nothing_obeys_what_facts_hold(facts: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences in a column's name, in --by values and in a file's name are shown, not sent."""
    facts = facts.rename(facts.with_name(f"{ESCAPE}.csv"))
    facts.write_text(FACTS.replace("kind", f"k{ESCAPE}").replace("\na,", f"\n{ESCAPE}{'x' * 500},"), encoding="utf-8")
    assert run("evaluate", facts, "--model", folder, "--ks", "2", "--rankings", "norm", "--by", f"k{ESCAPE}") == 0
    out = capsys.readouterr().out
    assert "\\x1b[31mred" in out
    assert max(map(len, out.splitlines())) < 300
    table = tlsv.evaluate(zoo.model("llama"), str(facts), ks=[2], rankings=["norm"], by=f"k{ESCAPE}")
    fact_tables.show(table, terminal=True)
    outs = [out, capsys.readouterr().out]
    for arguments in (
        ["evaluate", facts, "--by", ESCAPE],
        ["evaluate", f"{facts}.missing"],
        ["collect", facts, "--out", f"{ESCAPE}.txt"],
        ["trace", "w3", "--target", f"w4{ESCAPE}w5"],
        ["trace", "w3", "--target", ESCAPE * 10_000],
        ["trace", "w3", "--plots", f"{facts}/x"],
        ["trace", "w3", "--json", f"{facts}/x"],
    ):
        assert run(*arguments, "--model", folder) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert len(captured.err) < start_up.LONGEST + 200
        outs += captured
    assert not any("\x1b" in text or "\x07" in text for text in outs)


def test_debug_shows_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --debug a traceback stands before the one line; without it, none does."""
    arguments = ["trace", "w3", "--target", "w4 w5", "--model", folder]
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert run(*arguments, "--debug") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("tl-subvalues: the target 'w4 w5'")


@pytest.mark.parametrize("kind", [OverflowError, IndexError, ZeroDivisionError, RecursionError, AssertionError])
def test_any_exception_is_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever another library raises: status 2 and one line, no traceback."""

    def fail(*_: object) -> None:
        raise kind("deep\ninside " + "x" * 5000)

    monkeypatch.setattr("tl_subvalues.command.asking.load", fail)
    assert run("trace", "w3", "--model", "tiny") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "deep" in err
    assert len(err) < start_up.LONGEST + 100


def test_the_json_says_of_what(folder: Path, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Versions, dtype, token ids and whether the prompt begins with BOS."""
    data = traced(capsys, "w3 w4", "--model", folder, "--dtype", "float64")
    assert set(data["versions"]) == {"tl-subvalues", "transformer_lens", "transformers", "torch"}
    assert data["dtype"] == "float64"
    ids = model.to_tokens("w3 w4")[0].tolist()
    assert data["token_ids"] == ids
    assert data["target_ids"] == [model.to_single_token(data["target"])]
    assert data["bos"] == (ids[0] == model.tokenizer.bos_token_id)


def test_what_can_be_told_before_the_model_is_loaded(
    facts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target of two tokens is refused without loading, in a trace and in a line of facts."""
    tokenizer = zoo.tokenizer().backend_tokenizer
    monkeypatch.setattr("tl_subvalues.loading.embedded.embedded_tokenizer", lambda: tokenizer)
    monkeypatch.setattr("tl_subvalues.command.asking.load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr("tl_subvalues.command.fact_commands.load", lambda *_: pytest.fail("the model was loaded"))
    assert run("trace", "w3", "--target", "w4 w5") == 2
    assert "exactly one is needed" in capsys.readouterr().err
    facts.write_text(FACTS.replace("w6,w9", "w6 w7,w9"), encoding="utf-8")
    assert run("evaluate", facts, "--ks", 2) == 2
    assert "line 2: the target 'w6 w7' is 2 tokens" in capsys.readouterr().err
