"""The words of every row in a Parquet file: brute force, kills, damage, other settings, and questions in SQL."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import jaxtyping
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from helpers import baevski18_reference as fairseq
from helpers import zoo
from helpers.rows import RowsByHand

import tl_subvalues as tlsv
from tl_subvalues.loading.embedded import embedded_folder
from tl_subvalues.rows import index as index_module

pytestmark = [pytest.mark.bridge, pytest.mark.any_release]
CLOSE = 2e-5
SMALL = {"k": 4, "by": "bs_value"}


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.bridge("llama")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six parts of the 96 rows of a tiny model."""
    monkeypatch.setattr(index_module, "_ROWS", 16)


def metadata(path: Path) -> dict[str, Any]:
    return json.loads(pq.read_schema(path).metadata[b"tl_subvalues"])


@pytest.mark.parametrize("by", ["bs_value", "cosine"])
@pytest.mark.parametrize("unit", ["ffn_neuron", "attn_neuron"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral", *zoo.slow("cohere", "deepseek_v3")])
def test_every_row_has_its_words(family: str, unit: Any, by: Any, tmp_path: Path, small_parts: None) -> None:
    """Both sides of every row of the model, in its order: ids, texts and values, the most extreme first."""
    if (family, unit) == ("deepseek_v3", "attn_neuron"):
        family = "granite"  # latent attention goes by other names
    model = zoo.bridge(family)
    hand = RowsByHand(model, family, unit)
    values = hand.values(by)
    path = tlsv.write_index(model, tmp_path / "words.parquet", k=5, unit=unit, by=by)
    table = pd.read_parquet(path)
    places = (
        ["head", "dim"] if unit == "attn_neuron" else ["expert", "neuron"] if family in zoo.MIXTURES else ["neuron"]
    )
    assert list(table) == ["label", "layer", *places, "side", "token_ids", "tokens", f"{by}s"]
    assert table["label"].tolist() == [label for label in hand.labels for _ in range(2)]
    assert table["side"].tolist() == ["top", "bottom"] * len(hand.labels)
    bound = CLOSE * max(1.0, float(values.abs().max()))
    for number, row in enumerate(table.itertuples()):
        sign = 1 if row.side == "top" else -1
        own = sign * values[number // 2]
        best = own.sort(descending=True).values[:5]
        ids = torch.tensor(row.token_ids)
        assert len(ids.unique()) == 5
        found = sign * torch.tensor(getattr(row, f"{by}s")).double()
        assert (found - best).abs().max() < bound
        assert (own[ids] - found).abs().max() < bound
        assert list(row.tokens) == [f"w{i}" for i in ids.tolist()]
    assert not list(tmp_path.glob("*.parts"))
    assert not list(tmp_path.glob("*.lock"))


def test_an_adaptive_softmax_has_bands(tmp_path: Path) -> None:
    """One more list: the band of each word; values with the band's share."""
    checkpoint = fairseq.make_checkpoint()
    reference = fairseq.Reference(checkpoint)
    model = tlsv.baevski18.load(*fairseq.write(tmp_path, checkpoint), device="cpu")
    table = pd.read_parquet(tlsv.write_index(model, tmp_path / "words.parquet", k=7))
    for row in table.iloc[::7].itertuples():
        W = reference.model[f"layers.{row.layer}.fc2.weight"][:, row.neuron]
        expected = reference.bs_values(W[None])[0].topk(7, largest=row.side == "top")
        assert list(row.token_ids) == expected.indices.tolist()
        assert list(row.bs_values) == pytest.approx(expected.values.tolist(), abs=1e-5)
        assert list(row.bands) == [reference.band(token) for token in row.token_ids]


def test_it_says_whose_it_is(model: Any, tmp_path: Path) -> None:
    """Model, digest of its weights, versions and settings, in the file itself; another weight is another digest."""
    said = metadata(tlsv.write_index(model, tmp_path / "words.parquet", **SMALL))
    assert said["schema"] == "tl-subvalues/index/1"
    assert (said["unit"], said["by"], said["k"], said["dtype"]) == ("ffn_neuron", "bs_value", 4, "torch.float32")
    assert said["model"] == "llama (LlamaForCausalLM)"
    assert torch.__version__.startswith(said["torch"])
    assert said["package"] == importlib.metadata.version("tl-subvalues")
    other = zoo.bridge("llama")
    with torch.no_grad():
        other.blocks[1].mlp.out.original_component.weight[3, 5] += 1e-3
    changed = metadata(tlsv.write_index(other, tmp_path / "other.parquet", **SMALL))
    assert [key for key in said if said[key] != changed[key]] == ["weights"]


def counting(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Numbers of the rows of each part that is made; at one part, a Ctrl-C."""
    made: list[int] = []
    own = index_module._table

    def table(rows: Any, spans: Any, *rest: Any) -> Any:
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append(spans[0].start)
        return own(rows, spans, *rest)

    monkeypatch.setattr(index_module, "_table", table)
    return made


def test_what_was_made_is_not_made_again(
    model: Any, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a Ctrl-C the next call makes the rest, to the same bytes; a finished file is left alone."""
    whole = tlsv.write_index(model, tmp_path / "whole.parquet", **SMALL).read_bytes()
    path = tmp_path / "words.parquet"
    with monkeypatch.context() as patch:
        counting(patch, stop_at=4)
        with pytest.raises(KeyboardInterrupt):
            tlsv.write_index(model, path, **SMALL)
    assert not path.exists()
    assert len(list((tmp_path / "words.parquet.parts").glob("*.arrow"))) == 4
    (tmp_path / "words.parquet.parts" / "000000-0123456789abcdef.parquet").write_bytes(b"a part as 0.1.0 made it")
    made = counting(monkeypatch)
    assert tlsv.write_index(model, path, **SMALL).read_bytes() == whole
    assert len(made) == 2
    assert not (tmp_path / "words.parquet.parts").exists()
    before = path.stat().st_mtime_ns
    tlsv.write_index(model, path, **SMALL)
    assert (len(made), path.stat().st_mtime_ns) == (2, before)
    tlsv.write_index(model, path, k=3)
    assert metadata(path)["k"] == 3
    assert len(made) == 8


def test_a_damaged_part_is_made_again(
    model: Any, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of other bytes than its name says, and one that was cut off."""
    whole = tlsv.write_index(model, tmp_path / "whole.parquet", **SMALL).read_bytes()
    path = tmp_path / "words.parquet"
    with monkeypatch.context() as patch:
        counting(patch, stop_at=5)
        with pytest.raises(KeyboardInterrupt):
            tlsv.write_index(model, path, **SMALL)
    parts = sorted((tmp_path / "words.parquet.parts").glob("*.arrow"))
    content = bytearray(parts[0].read_bytes())
    content[len(content) // 2] ^= 1
    parts[0].write_bytes(content)
    parts[2].write_bytes(parts[2].read_bytes()[:-7])
    made = counting(monkeypatch)
    assert tlsv.write_index(model, path, **SMALL).read_bytes() == whole
    assert len(made) == 3


KILLED = """
import sys, time
import tl_subvalues as tlsv
from tl_subvalues.rows import index
index._ROWS = 16
own = index._table
def slowly(*arguments):
    time.sleep(0.3)
    return own(*arguments)
index._table = slowly
tlsv.write_index(tlsv.load_model(sys.argv[1], device="cpu"), sys.argv[2], k=4)
"""


@pytest.mark.slow
def test_killed_and_resumed_it_is_as_one_run(tmp_path: Path) -> None:
    """kill -9 while parts are made; the second start finishes, and leaves nothing but the file."""
    folder = tmp_path / "model"
    zoo.hf_model("llama").save_pretrained(folder)
    zoo.tokenizer().save_pretrained(folder)
    path = tmp_path / "words.parquet"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(path)])
    parts = tmp_path / "words.parquet.parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.arrow"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not path.exists()
    assert len(list(parts.glob("*.arrow"))) < 6
    (parts / ".0123456789abcdef.unfinished").write_bytes(b"what a kill may leave")
    subprocess.run([sys.executable, "-c", KILLED, str(folder), str(path)], check=True)
    whole = tlsv.write_index(tlsv.load_model(str(folder), device="cpu"), tmp_path / "whole.parquet", k=4)
    assert pd.read_parquet(path).equals(pd.read_parquet(whole))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "whole.parquet", "words.parquet"]


def test_parts_of_other_settings_and_other_files_are_refused(
    model: Any, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What differs is named; nobody's file is removed; the way out that is named works."""
    path, parts = tmp_path / "words.parquet", tmp_path / "words.parquet.parts"
    with monkeypatch.context() as patch:
        counting(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            tlsv.write_index(model, path, **SMALL)
    with pytest.raises(ValueError, match=r"parts made with another k, by;|parts made with another by, k;"):
        tlsv.write_index(model, path, k=5, by="cosine")
    with pytest.raises(ValueError, match="another model, weights"):
        tlsv.write_index(zoo.bridge("gpt2"), path, **SMALL)
    tlsv.write_index(model, tmp_path / "another.parquet", k=5)
    (parts / "mine.txt").write_text("mine")
    tlsv.write_index(model, path, **SMALL)
    assert [p.name for p in parts.iterdir()] == ["mine.txt"]
    tlsv.write_index(model, path, **SMALL)  # it is there
    path.unlink()
    with pytest.raises(ValueError, match="holds files that are no parts of ours"):
        tlsv.write_index(model, path, **SMALL)
    assert (parts / "mine.txt").read_text() == "mine"
    (parts / "mine.txt").unlink()
    (parts / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="not as it was written"):
        tlsv.write_index(model, path, **SMALL)
    (parts / "settings.json").unlink()
    parts.rmdir()
    parts.write_text("a file")
    with pytest.raises(ValueError, match="is in the way"):
        tlsv.write_index(model, path, **SMALL)
    with FileLock(tmp_path / "locked.parquet.lock"), pytest.raises(ValueError, match="being written by another run"):
        tlsv.write_index(model, tmp_path / "locked.parquet", **SMALL)


def test_what_is_asked_wrongly_is_refused(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for path in ("words.csv", "words", "there/words.parquet"):
        with pytest.raises(ValueError, match="parquet"):
            tlsv.write_index(model, tmp_path / path)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ValueError, match="not a file"):
        tlsv.write_index(model, tmp_path / "folder.parquet")
    path = tmp_path / "words.parquet"
    for k in (0, -2, 1.5, "4", None):
        with pytest.raises(ValueError, match="k is a positive number"):
            tlsv.write_index(model, path, k=k)
    with pytest.raises(ValueError, match="unit is 'ffn_neuron'"):
        tlsv.write_index(model, path, unit="head")
    with pytest.raises(ValueError, match="rows are read without one"):
        tlsv.write_index(model, path, by="prob_increase")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.parquet"]
    table = pd.read_parquet(tlsv.write_index(model, str(path), k=1000))
    assert set(table["token_ids"].map(len)) == {61}


def test_the_home_folder_is_expanded(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in other outputs; no folder called `~` appears."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert tlsv.write_index(model, "~/words.parquet", k=2) == tmp_path / "words.parquet"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["words.parquet"]


def test_questions_in_sql(model: Any, tmp_path: Path) -> None:
    """DuckDB reads the lists: which neurons have a word among their first, and how many."""
    path = tlsv.write_index(model, tmp_path / "words.parquet", k=5)
    found = duckdb.sql(f"select label, side from '{path}' where list_contains(tokens, 'w9')").df()
    table = pd.read_parquet(path)
    expected = table[table["tokens"].map(lambda tokens: "w9" in tokens)]
    assert 0 < len(expected) < len(table)
    assert set(zip(found["label"], found["side"], strict=True)) == set(
        zip(expected["label"], expected["side"], strict=True)
    )


@pytest.mark.real_model
@pytest.mark.slow
def test_two_layers_of_the_embedded_model(tmp_path: Path) -> None:
    """49,152 words, of which the fifty highest and lowest are found without a sort; from the weights, in float64."""
    folder = tmp_path / "two_layers"
    folder.mkdir()
    for file in embedded_folder().iterdir():
        if file.name == "config.json":
            (folder / file.name).write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 2}))
        else:
            (folder / file.name).symlink_to(file)
    model = tlsv.load_model(str(folder), device="cpu")
    table = pd.read_parquet(tlsv.write_index(model, tmp_path / "words.parquet"))
    assert len(table) == 2 * 2 * 1536
    hf = model.original_model
    U, gain = hf.lm_head.weight.detach().double(), hf.model.norm.weight.detach().double()
    for layer in (0, 1):
        W = hf.model.layers[layer].mlp.down_proj.weight.detach().T.double() * gain
        for neuron in range(0, 1536, 97):
            values = U @ W[neuron]
            for side, largest in (("top", True), ("bottom", False)):
                row = table[(table["label"] == f"L{layer}N{neuron}") & (table["side"] == side)].iloc[0]
                best = values.sort(descending=largest).values[:50]
                found = torch.tensor(row["bs_values"]).double()
                assert (found - best).abs().max() < 1e-4
                assert (values[torch.tensor(row["token_ids"]).long()] - found).abs().max() < 1e-4
