"""`trace --html`, `trace --save` and `show`: pages and saved traces from the command line."""

from pathlib import Path

import pytest
from helpers.command import run, tiny_folder

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder, for --model."""
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
def test_a_trace_is_written_saved_and_shown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page, the saved trace, and what `show` prints of it: the rows of every table, with their words."""
    page, saved = tmp_path / "t.html", tmp_path / "t.zip"
    asked = ["trace", "w3 w4 w5", "--target", "w6", "--model", str(folder), "--top", "4"]
    assert run(*asked, "--html", str(page), "--save", str(saved)) == 0
    assert capsys.readouterr().err.splitlines()[-2:] == [f"saved {page}", f"saved {saved}"]
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    opened = tlsv.open_trace(saved)
    assert [len(opened.ffn_neurons()), opened.document["top"]] == [4, 4]
    assert (opened.str_tokens[-3:], opened.target_token) == (["w3", "w4", "w5"], "w6")
    assert run("show", str(saved), "--top", "3") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"log p = {opened.log_prob:.3f}" in captured.out
    tables = captured.out.split("\n\n")[1:]
    assert [len(table.splitlines()) - 2 for table in tables] == [3] * 5
    for row in opened.ffn_neurons(3).itertuples():
        assert row.label in captured.out
        assert f"{row.log_prob_increase:+.3f}" in captured.out
        side = "top" if row.coefficient > 0 else "bottom"
        assert opened.document["words"]["cosine"][row.label][side]["texts"][0] in captured.out
    again = tmp_path / "again.html"
    assert run("show", str(saved), "--html", str(again)) == 0
    assert again.read_text(encoding="utf-8") == opened.to_html()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show"], "FILE"),
        (["show", "no-such-file.zip"], "no-such-file.zip"),
        (["show", "pyproject.toml"], "neither a folder nor a .zip"),
        (["trace", "w3", "--target", "w4", "--html", "no/such/folder/x.html"], "folder"),
        (["trace", "w3", "--target", "w4", "--save", "no/such/folder/x.zip"], "folder"),
        (["trace", "w3", "--target", "w4", "--save", "tests"], "is no saved trace"),
        (["trace", "w3", "--target", "w4", "--save", ""], "the path is empty"),
        (["trace", "w3", "--target", "w4", "--html", ""], "the path is empty"),
        (["trace", "w3", "--target", "w4", "--save", "~nobody-of-that-name/x.zip"], "no such user"),
        (["trace", "w3", "--target", "w4", "--html", "-"], "--html writes a file"),
        (["trace", "w3", "--target", "w4", "--save", "-"], "--save writes a file"),
        (["show", "tests", "--html", "-"], "--html writes a file"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and one line, before a model is loaded."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1
