"""The commands `effects` and `graph`, as functions and programs: what the methods give, one line for bad input."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.command import run

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

PROMPT = "w3 w4 w5"


@pytest.mark.parametrize(
    ("unit", "rule", "positions"),
    [
        ("ffn_neuron", "gradient", "all"),
        ("head_position", "half", "last"),
        ("sublayer", "gradient", "last"),
        ("embedding", "frozen", "all"),
    ],
)
def test_effects_are_those_of_the_method(
    unit: Any, rule: Any, positions: Any, folder: Path, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same rows in text, CSV and JSON, the target's measure against others, and words beside components."""
    trace = tlsv.trace(model, PROMPT, "w6", against="w7")
    expected = trace.effects(unit, rule=rule, positions=positions, top=4)
    options = ["--unit", unit, "--rule", rule, "--positions", positions, "--top", 4, "--against", "w7"]
    csv, file = tmp_path / "effects.csv", tmp_path / "effects.json"
    arguments = ["effects", PROMPT, "--target", "w6", *options, "--model", folder, "--csv", csv, "--json", file]
    assert run(*arguments) == 0
    text, data, table = (
        capsys.readouterr().out,
        json.loads(file.read_text(encoding="utf-8")),
        pd.read_csv(csv, float_precision="round_trip"),
    )
    assert data["schema"] == "tl-subvalues/effects/1"
    assert (data["unit"], data["rule"], data["positions"]) == (unit, rule, positions)
    assert data["score"] == pytest.approx(expected.attrs["score"], abs=1e-5)
    assert list(table.columns) == list(expected.columns)
    for name in ("label", "direct_effect", "total_effect"):
        values = [row[name] for row in data["rows"]]
        assert values == table[name].tolist()
        if name == "label":
            assert values == expected[name].tolist()
        else:
            assert values == pytest.approx(expected[name].tolist(), abs=1e-5)
            assert all(f"{value:+.3f}" in text for value in values)
    assert f"rule {rule}" in text
    assert ("writes" in text) == (unit != "embedding")


def test_json_to_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `-`, JSON alone, also of rows without a position."""
    assert run("effects", PROMPT, "--unit", "embedding", "--rule", "half", "--model", folder, "--json", "-") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["target_chosen"]
    assert {row["position"] for row in data["rows"]} >= {1, 2, 3}


def test_a_graph_is_that_of_the_method(
    folder: Path, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is what `to_json` writes, its slug the file's name; what was written is said on standard error."""
    out, ours = tmp_path / "mine.json", tmp_path / "ours.json"
    assert run("graph", PROMPT, "--target", "w6", "--model", folder, "--nodes", 5, "--rule", "half", "--out", out) == 0
    graph = tlsv.trace(model, PROMPT, "w6").graph(nodes=5, rule="half")
    graph.to_json(ours, slug="mine")
    found, expected = (json.loads(path.read_text(encoding="utf-8")) for path in (out, ours))
    assert found["metadata"]["slug"] == "mine"
    assert [node["node_id"] for node in found["nodes"]] == [node["node_id"] for node in expected["nodes"]]
    assert [link["weight"] for link in found["links"]] == pytest.approx([link["weight"] for link in expected["links"]])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{len(graph.nodes)} nodes and {len(found['links'])} edges are written to {out}" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["effects"], "PROMPT"),
        (["effects", "w3", "--unit", "neuron"], "neuron"),
        (["effects", "w3", "--rule", "relp"], "relp"),
        (["effects", "w3", "--positions", "first"], "first"),
        (["effects", "w3", "--top", "0"], "0"),
        (["effects", "w3", "--csv", "x.txt"], "parquet"),
        (["effects", "w3", "--json", "no/such/folder/x.json"], "folder"),
        (["effects", "w3", "--target", "w4", "--target", "w4"], "twice"),
        (["graph", "w3"], "--out"),
        (["graph", "w3", "--out", "x.txt"], ".json"),
        (["graph", "w3", "--out", "no/such/folder/x.json"], "folder"),
        (["graph", "w3", "--out", "x.json", "--rule", "gradient"], "gradient"),
        (["graph", "w3", "--out", "x.json", "--nodes", "0"], "0"),
        (["graph", "w3", "--out", "x.json", "--edges", "0"], "0"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and one line, before a model is loaded."""
    monkeypatch.setattr("tl_subvalues.command.asking.load", lambda *_: pytest.fail("the model was loaded"))
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.slow
def test_as_programs(folder: Path, tmp_path: Path) -> None:
    """Quiet on standard error but for what was written, and no traceback on bad input."""
    base = [sys.executable, "-c", "from tl_subvalues.command.cli import main; main()"]

    def program(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [*base, *map(str, arguments), "--model", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    effects = program("effects", PROMPT, "--target", "w6", "--top", 3)
    assert (effects.returncode, effects.stderr) == (0, "")
    assert "Effects of FFN neurons" in effects.stdout
    graph = program("graph", PROMPT, "--target", "w6", "--out", tmp_path / "graph.json")
    assert (graph.returncode, graph.stdout) == (0, "")
    assert len(graph.stderr.splitlines()) == 1
    for arguments in (("effects", PROMPT, "--target", "w6 w7"), ("graph", "", "--out", tmp_path / "x.json")):
        bad = program(*arguments)
        assert (bad.returncode, bad.stdout, len(bad.stderr.splitlines())) == (2, "", 1)


def test_help_imports_no_torch() -> None:
    """So that it does not take seconds."""
    code = (
        "import sys\nfrom tl_subvalues.command.cli import main\nmain(['--help'])\n"
        "assert not {'torch', 'pandas', 'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
