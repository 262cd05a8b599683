"""Many facts in parts: shards give the table of a plain run, and whoever is killed, nothing is lost or doubled."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from helpers import zoo
from helpers.facts import SMALL, make_facts

import tl_subvalues as tlsv
from tl_subvalues.study import parts as parts_module
from tl_subvalues.study.parts import Shard, part_size

TESTS = Path(__file__).parent
FACTS = make_facts(24)
COLLECT: dict[str, Any] = {"top": 7, "prepend_bos": False}


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.model("llama")


@pytest.fixture(scope="module")
def plain(model: Any) -> pd.DataFrame:
    return tlsv.collect(model, FACTS, **COLLECT)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of three shards, to be copied and damaged."""
    out = tmp_path_factory.mktemp("made") / "parts"
    for i in range(3):
        tlsv.collect(model, FACTS, shard=(i, 3), out=out, **COLLECT)
    return out


def same(table: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same to the rounding of batches of other facts; rows of equal sums may stand in another order."""
    assert list(table.columns) == list(other.columns)
    a, b = (one.sort_values(["unit", "label"], ignore_index=True) for one in (table, other))
    pd.testing.assert_frame_equal(a, b, rtol=1e-5, atol=1e-6)
    pd.testing.assert_series_equal(table["sum_increase"], other["sum_increase"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_shards_are_the_plain_run(model: Any, folder: Path, plain: pd.DataFrame, tmp_path: Path) -> None:
    """Merged, from folders or files; each row of a part is what the fact's own trace says."""
    same(tlsv.merge(folder), plain)
    files = sorted(folder.glob("*.parquet"))
    same(tlsv.merge([*files, folder], out=tmp_path / "x.parquet"), plain)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "x.parquet"), tlsv.merge(files))
    rows = pd.concat([pq.read_table(file).to_pandas() for file in files])
    assert list(rows.columns) == ["fact", "unit", "label", "increase", "rank"]
    assert sorted(rows["fact"].unique()) == list(range(24))
    trace = tlsv.trace(model, *FACTS.loc[11, ["prompt", "target"]], prepend_bos=False)
    own, heads = rows[(rows["fact"] == 11) & (rows["unit"] == "head")], trace.heads(7)
    assert own["label"].tolist() == heads["label"].tolist()
    assert own["increase"].tolist() == pytest.approx(heads["log_prob_increase"].tolist(), abs=1e-6)
    assert own["rank"].tolist() == list(range(1, 8))
    metadata = json.loads(pq.read_schema(files[0]).metadata[b"tl_subvalues"])
    assert metadata["schema"] == "tl-subvalues/parts/1"
    assert {"weights", "configuration", "torch", "package", "top", "facts"} <= metadata.keys()


def test_a_shard_gives_its_own_table(model: Any, folder: Path, tmp_path: Path) -> None:
    """It is that of its facts; the same call again makes nothing."""
    shutil.copytree(folder, tmp_path / "parts")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    table = tlsv.collect(model, FACTS, shard=(1, 3), out=tmp_path / "parts", batch_size=5, **COLLECT)
    same(table, tlsv.collect(model, FACTS.iloc[1::3], **COLLECT))
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 100])
def test_batches_change_nothing(model: Any, plain: pd.DataFrame, size: int, tmp_path: Path) -> None:
    """Neither in a plain run nor in parts."""
    same(tlsv.collect(model, FACTS, batch_size=size, **COLLECT), plain)
    same(tlsv.collect(model, FACTS, batch_size=size, out=tmp_path / "parts", **COLLECT), plain)


def test_more_shards_than_facts(model: Any, tmp_path: Path) -> None:
    """Those that have none write nothing, and are not missed."""
    for i in range(4):
        table = tlsv.collect(model, FACTS.head(2), shard=(i, 4), out=tmp_path / "parts", **COLLECT)
        assert (len(table) == 0) == (i > 1)
    same(tlsv.merge(tmp_path / "parts"), tlsv.collect(model, FACTS.head(2), **COLLECT))


@pytest.mark.slow
@pytest.mark.parametrize("by", [None, "kind"])
def test_evaluate_in_shards(model: Any, by: str | None, tmp_path: Path) -> None:
    """The same table to rounding, intervals and order of the groups too, bad rows among the facts."""
    facts = pd.concat([make_facts(7), pd.DataFrame({"prompt": ["w3"], "target": ["w3 w4"], "kind": ["odd"]})])
    facts = pd.concat([facts, make_facts(9, seed=2)], ignore_index=True)
    expected = tlsv.evaluate(model, facts, by=by, on_error="skip", **SMALL)
    out = tmp_path / "parts"
    for i in range(2):
        tlsv.evaluate(model, facts, by=by, on_error="skip", shard=(i, 2), out=out, **SMALL)
    found = tlsv.merge(out)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-6)
    assert found.attrs["skipped"] == expected.attrs["skipped"] != []


def test_what_merge_refuses(model: Any, folder: Path, tmp_path: Path) -> None:
    """Missing shards and parts, other settings and models, facts twice, damage: by name."""

    def copied(name: str) -> Path:
        shutil.copytree(folder, tmp_path / name)
        return tmp_path / name

    files = sorted(file.name for file in folder.glob("*.parquet"))
    out = copied("shard")
    (out / files[1]).unlink()
    with pytest.raises(ValueError, match="of 3 shards there is missing: shard 1; run them again"):
        tlsv.merge(out)
    other = tmp_path / "other"
    tlsv.collect(model, FACTS, shard=(1, 3), out=other, top=8, prepend_bos=False)
    with pytest.raises(ValueError, match="with another top;"):
        tlsv.merge([out, other])
    shutil.rmtree(other)
    tlsv.collect(zoo.model("llama", seed=1), FACTS, shard=(1, 3), out=other, **COLLECT)
    with pytest.raises(ValueError, match="with another weights;"):
        tlsv.merge([out, other])
    shutil.rmtree(other)
    tlsv.collect(model, FACTS[::-1].reset_index(drop=True), shard=(1, 3), out=other, **COLLECT)
    with pytest.raises(ValueError, match="with another facts;"):
        tlsv.merge([out, other])
    (tmp_path / "copy").mkdir()
    shutil.copy(folder / files[0], tmp_path / "copy" / files[0])
    with pytest.raises(ValueError, match="facts that are in another part too"):
        tlsv.merge([folder, tmp_path / "copy"])
    shutil.rmtree(other)
    tlsv.collect(model, FACTS, shard=(1, 4), out=other, **COLLECT)
    with pytest.raises(ValueError, match="of 3 shards and of 4"):
        tlsv.merge([out, other])
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    for paths, says in (
        (tmp_path / "empty", "no parts to merge"),
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "table.parquet", "no part of ours"),
    ):
        with pytest.raises(ValueError, match=says):
            tlsv.merge(paths)
    with pytest.raises(ValueError, match=r"\.csv"):
        tlsv.merge(folder, out="x.xlsx")


def test_a_part_that_lacks_facts(folder: Path, tmp_path: Path) -> None:
    """What a part holds is held against what it says."""
    shutil.copytree(folder, tmp_path / "parts")
    path = sorted((tmp_path / "parts").glob("*.parquet"))[0]
    table = pq.read_table(path)
    pq.write_table(table.filter(table["fact"].to_numpy() != 3), path)
    with pytest.raises(ValueError, match="does not have the facts that it says"):
        tlsv.merge(tmp_path / "parts")


@pytest.mark.slow
def test_damage_is_never_taken_for_a_result(model: Any, folder: Path, plain: pd.DataFrame, tmp_path: Path) -> None:
    """Wherever bytes are flipped or lost: `merge` refuses or gives the same table, and the same call mends it."""
    import random

    shutil.copytree(folder, tmp_path / "parts")
    path = sorted((tmp_path / "parts").glob("*.parquet"))[1]
    whole, generator = path.read_bytes(), random.Random(1)
    said: list[str] = []
    for place in [*generator.sample(range(len(whole)), 60), -1, -20]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged if place >= 0 else whole[:place])
        try:
            same(tlsv.merge(tmp_path / "parts"), plain)
        except ValueError as error:
            said.append(str(error))
    for column in ("fact", "unit", "label", "increase", "rank"):  # names have no sums of their own
        places = [at for at in range(len(whole)) if whole.startswith(column.encode(), at)]
        for place in places:
            path.write_bytes(whole[:place] + b"x" + whole[place + 1 :])
            try:
                same(tlsv.merge(tmp_path / "parts"), plain)
            except ValueError as error:
                said.append(str(error))
    assert len(said) > 40
    assert all("shard-00001" in message for message in said)
    path.write_bytes(whole[:-20])
    tlsv.collect(model, FACTS, shard=(1, 3), out=tmp_path / "parts", **COLLECT)
    assert path.read_bytes() == whole


def test_a_folder_of_another_run(model: Any, folder: Path, tmp_path: Path) -> None:
    """Parts of other settings, or of another number of shards, are neither taken nor replaced; nor two runs at once."""
    shutil.copytree(folder, tmp_path / "parts")
    for change, says in (
        ({"top": 9}, "with another top;"),
        ({"positions": True}, "with another positions;"),
        ({"prepend_bos": True}, "with another facts, prepend_bos;"),
        ({"shard": (0, 2)}, "parts of 3 shards, not 2"),
    ):
        with pytest.raises(ValueError, match=says):
            tlsv.collect(model, FACTS, out=tmp_path / "parts", **{**COLLECT, "shard": (0, 3), **change})
    with FileLock(tmp_path / "parts" / f"{Shard(0, 3).name}.lock"), pytest.raises(ValueError, match="another run"):
        tlsv.collect(model, FACTS, shard=(0, 3), out=tmp_path / "parts", **COLLECT)
    assert {file.name for file in folder.iterdir()} == {path.name for path in (tmp_path / "parts").glob("*.parquet")}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"shard": (2, 2), "out": "parts"}, "0 to n - 1"),
        ({"shard": (-1, 2), "out": "parts"}, "shard"),
        ({"shard": 3, "out": "parts"}, r"shard is \(i, n\)"),
        ({"shard": (0, 2)}, "shard= writes parts"),
        ({"shard": (0, 2), "out": "x.csv"}, "shard= writes parts"),
        ({"out": "no/such/parts"}, "folder"),
        ({"out": "parts", "record": "x.jsonl"}, "its own record"),
        ({"batch_size": 0}, "batch_size"),
        ({"columns": {"prompt": "question"}}, "no column question"),
        ({"columns": {"prmopt": "prompt"}}, "columns maps prompt, target, against"),
        ({"layout": "zsre"}, "'counterfact', 'lama'"),
    ],
)
def test_bad_input(
    arguments: dict[str, Any], says: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, before anything runs, and nothing is left behind."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.chdir(tmp_path)
    for call in (tlsv.collect, tlsv.evaluate):
        with pytest.raises(ValueError, match=says):
            call(model, FACTS, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_are_named_before_anything_runs(model: Any, tmp_path: Path) -> None:
    """Those of the shard; by the line of the whole file."""
    path = tmp_path / "facts.csv"
    FACTS.to_csv(path, index=False)
    path.write_text(path.read_text() + "odd,w3,w4 w5\n")
    with pytest.raises(ValueError, match="line 26: "):
        tlsv.collect(model, path, shard=(0, 3), out=tmp_path / "parts", **COLLECT)
    assert not (tmp_path / "parts").exists()
    for i in range(3):
        tlsv.collect(model, path, shard=(i, 3), on_error="skip", out=tmp_path / "parts", **COLLECT)
    table = tlsv.merge(tmp_path / "parts")
    assert [problem.split(":")[0] for problem in table.attrs["skipped"]] == ["line 26"]


@pytest.mark.any_release
def test_parts_cover_their_shard() -> None:
    """Each row once, whatever the numbers, and a part is named by its rows."""
    for total, of in itertools.product((1, 2, 17, 1000, 100_000), (1, 3, 8)):
        shards = [Shard(i, of).numbers(total) for i in range(of)]
        assert sorted(itertools.chain(*shards)) == list(range(total))
    assert [part_size(count) for count in (1, 1000, 10_000, 1_000_000)] == [16, 16, 157, 256]


# Run in processes of their own, to be killed.
SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from helpers import surroundings, zoo
import tl_subvalues as tlsv
from helpers.facts import SMALL, make_facts
model, facts, shard = zoo.model("llama"), make_facts(70), (int(sys.argv[2]), 2)
if sys.argv[1] == "collect":
    tlsv.collect(model, facts, top=9, prepend_bos=False, shard=shard, out={folder!r} + "/collect")
else:
    tlsv.evaluate(model, facts, shard=shard, out={folder!r} + "/evaluate", **SMALL)
"""


@pytest.mark.any_release
@pytest.mark.slow
@pytest.mark.parametrize("what", ["collect", "evaluate"])
def test_killed_workers_lose_and_double_nothing(what: str, model: Any, tmp_path: Path) -> None:
    """kill -9 of one of two in the middle, then both to their end: the table of a plain run."""
    script = SCRIPT.format(tests=str(TESTS), folder=str(tmp_path))
    out = tmp_path / what

    def start(shard: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", script, what, str(shard)], stderr=subprocess.DEVNULL)

    def made(shard: int) -> int:
        return len(list(out.glob(f"shard-{shard:05d}-*.parquet")))

    process = start(0)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and made(0) < 1:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < made(0) < 3
    (out / f".{Shard(0, 2).name}-0123456789abcdef.unfinished").write_bytes(b"torn")
    with pytest.raises(ValueError, match="missing"):
        tlsv.merge(out)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    for shard in (0, 1):
        assert start(shard).wait() == 0
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert (made(0), made(1)) == (3, 3)
    assert not list(out.glob(".*unfinished"))
    facts = make_facts(70)
    if what == "collect":
        same(tlsv.merge(out), tlsv.collect(model, facts, top=9, prepend_bos=False))
    else:
        pd.testing.assert_frame_equal(tlsv.merge(out), tlsv.evaluate(model, facts, **SMALL), rtol=1e-5, atol=1e-6)


def test_one_part_in_memory(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many parts, no more than one is held when they are summed."""
    import weakref

    held: list[int] = []
    alive: list[weakref.ref[Any]] = []
    read = parts_module.read_part

    def watched(*arguments: Any) -> Any:
        held.append(sum(one() is not None for one in alive))
        table = read(*arguments)
        alive.append(weakref.ref(table))
        return table

    monkeypatch.setattr(sys.modules["tl_subvalues.study.merge"], "read_part", watched)
    tlsv.merge(folder)
    assert len(held) == 3
    assert max(held) <= 1
