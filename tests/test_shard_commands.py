"""The commands over shards: a job array as a plain loop of processes, merged; options that say what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers.command import run, tiny_folder
from helpers.facts import make_facts

import tl_subvalues as tlsv

ROOT = Path(tlsv.__file__).parents[1]
FACTS = make_facts(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder, for --model."""
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.mark.any_release
@pytest.mark.slow
@pytest.mark.parametrize("what", ["collect", "evaluate"])
def test_a_job_array(what: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each task of the array is a process of its own, started from docs/scale.md's line; `merge` has them all."""
    facts = tmp_path / "facts.jsonl"
    renamed = FACTS.rename(columns={"prompt": "question", "target": "answer"})
    renamed.to_json(facts, orient="records", lines=True)
    program = f"{sys.executable} -c 'from tl_subvalues.command.cli import main; main()'"
    command = f"{program} {what} {facts} --model {folder} --no-bos"
    command += " --column prompt=question --column target=answer"
    command += {"collect": " --top 5", "evaluate": " --ks 2 --rankings norm"}[what]
    command += f" --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT --out {tmp_path / 'parts'}"
    for task in range(2):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        done = subprocess.run(
            ["bash", "-c", command], env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "tl-subvalues merge" in done.stderr
        assert done.stdout == ""
    out = tmp_path / "table.parquet"
    assert run("merge", tmp_path / "parts", "--out", out) == 0
    assert f"rows are written to {out}" in capsys.readouterr().err
    model = tlsv.load_model(str(folder))
    if what == "collect":
        expected = tlsv.collect(model, FACTS, top=5, prepend_bos=False)
        found, expected = (
            one.sort_values(["unit", "label"], ignore_index=True) for one in (pd.read_parquet(out), expected)
        )
        pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-6)
    else:
        expected = tlsv.evaluate(model, FACTS, ks=[2], rankings=["norm"], prepend_bos=False)
        pd.testing.assert_frame_equal(pd.read_parquet(out), expected, rtol=1e-5, atol=1e-6)


def test_what_is_wrong(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, before the model is loaded."""
    facts = tmp_path / "facts.csv"
    FACTS.to_csv(facts, index=False)
    for options, says in (
        (["--shard", "1", "--out", tmp_path / "parts"], "--shard is I/N"),
        (["--shard", "2/2", "--out", tmp_path / "parts"], "0 to n - 1"),
        (["--shard", "0/2"], "pass a folder"),
        (["--column", "prompt"], "--column is NAME=COLUMN"),
        (["--column", "prompt=question"], "no column question"),
        (["--layout", "counterfact"], "no column requested_rewrite"),
    ):
        assert run("collect", facts, "--model", folder / "none", *options) == 2
        assert says in capsys.readouterr().err
    assert run("merge", tmp_path) == 2
    assert "there are no parts to merge" in capsys.readouterr().err
