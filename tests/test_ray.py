"""Parts made by Ray's workers: the tables of a plain run, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.facts import SMALL, make_facts

import tl_subvalues as tlsv

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.bridge, pytest.mark.any_release]

TESTS = Path(__file__).parent
FACTS = make_facts(40)  # three parts, for two workers
MANY = make_facts(150)  # ten parts, to be killed among
FEW = FACTS.iloc[:16]  # one part, for one worker, which takes seconds to start
# Batches of the parts' own size, so that a plain run has the same ones and not a bit is another.
BATCHES = {"batch_size": 16}
COLLECT: dict[str, Any] = {"top": 7, "prepend_bos": False, **BATCHES}


@pytest.fixture(scope="module")
def cluster() -> Any:
    """One Ray of two workers for all tests: it takes ten seconds to start, on a busy machine a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_raylet_start_wait_time_s", "300")
        patch.setenv("PYTHONPATH", f"{Path(tlsv.__file__).parents[1]}{os.pathsep}{TESTS}")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def plain(model: Any) -> pd.DataFrame:
    """The tables of a plain run over many facts."""
    return tlsv.collect(model, MANY, **COLLECT)


def same(table: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same to float64's rounding."""
    a, b = (one.sort_values(["unit", "label"], ignore_index=True) for one in (table, other))
    pd.testing.assert_frame_equal(a, b, rtol=1e-12, atol=1e-12)


def test_the_tables_of_a_plain_run(cluster: None, model: Any, folder: Path, tmp_path: Path) -> None:
    """A model that is loaded by name in each worker, and one that was changed since, which is sent to them."""
    from tl_subvalues.loading.origin import origin_of

    assert origin_of(model) is not None
    same(tlsv.collect(model, FACTS, ray=True, out=tmp_path / "named", **COLLECT), tlsv.collect(model, FACTS, **COLLECT))
    other = tlsv.load_model(str(folder))
    next(other.parameters()).data.mul_(1.0)
    next(other.parameters()).detach().mul_(1.5)
    assert origin_of(other) is None
    shipped = tlsv.collect(other, FEW, ray=True, shard=(1, 2), out=tmp_path / "shipped", **COLLECT)
    same(shipped, tlsv.collect(other, FEW.iloc[1::2], **COLLECT))
    found = tlsv.evaluate(model, FEW, by="kind", ray=True, out=tmp_path / "evaluated", **SMALL, **BATCHES)
    expected = tlsv.evaluate(model, FEW, by="kind", **SMALL, **BATCHES)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_a_model_that_workers_cannot_load(cluster: None, folder: Path, tmp_path: Path) -> None:
    """It is told in one sentence, and a bad fact by its line."""
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    model = tlsv.load_model(str(moved))
    shutil.rmtree(moved)
    with pytest.raises(ValueError, match="moved"):
        tlsv.collect(model, FEW, ray=True, out=tmp_path / "parts", **COLLECT)
    bad = pd.concat([FEW.iloc[:9], pd.DataFrame({"prompt": ["w3"], "target": ["w4 w5"]})], ignore_index=True)
    with pytest.raises(ValueError, match="row 9: "):
        tlsv.collect(model, bad, ray=True, out=tmp_path / "parts", **COLLECT)


def _workers() -> list[int]:
    """Process ids of actors."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::") and b"_Worker" in name:
                found.append(int(entry.name))
    return found


def test_killed_workers(cluster: None, model: Any, plain: pd.DataFrame, tmp_path: Path) -> None:
    """kill -9 of an actor in the middle: Ray starts another, and nothing is lost or doubled."""
    import threading

    out, killed = tmp_path / "parts", []

    def kill() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not list(out.glob("*.parquet")):
            time.sleep(0.01)
        mine = _workers()[:1]
        for pid in mine:
            os.kill(pid, signal.SIGKILL)
        killed.extend(mine)

    thread = threading.Thread(target=kill)
    thread.start()
    table = tlsv.collect(model, MANY, ray=True, out=out, **COLLECT)
    thread.join()
    assert killed
    same(table, plain)
    same(tlsv.merge(out), table)


# A driver of its own, to be killed.
SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from helpers import surroundings
import tl_subvalues as tlsv
from helpers.facts import make_facts
model = tlsv.load_model({folder!r})
tlsv.collect(model, make_facts(150), top=7, prepend_bos=False, ray={address!r}, out={out!r})
"""


def test_a_killed_driver(cluster: None, model: Any, plain: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: the parts that are there stay, and a plain call makes the others."""
    out = tmp_path / "parts"
    address = ray.get_runtime_context().gcs_address
    script = SCRIPT.format(tests=str(TESTS), folder=str(folder), out=str(out), address=address)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(tlsv.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and len(list(out.glob("*.parquet"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert 2 <= len(kept) < 10
    same(tlsv.collect(model, MANY, out=out, **COLLECT), plain)
    assert len(list(out.glob("*.parquet"))) == 10
