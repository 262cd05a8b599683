"""Tables as files: whole or not there, also where two runs write one file."""

import os
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tl_subvalues as tlsv
from tl_subvalues.study.output import require_writable_table, write_table
from tl_subvalues.study.places import place_of
from tl_subvalues.study.record import record_path
from tl_subvalues.study.sources import read_rows

pytestmark = pytest.mark.any_release

TABLE = pd.DataFrame({"label": ["L0N1", "é\x1b"], "sum_increase": [1.5, -0.25]})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_comes_back(suffix: str, tmp_path: Path) -> None:
    """Nothing else is left, the permissions are those of any new file, and a link stays a link."""
    target = tmp_path / f"table{suffix}"
    link = tmp_path / f"link{suffix}"
    link.symlink_to(target)
    write_table(TABLE, str(link))
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    pd.testing.assert_frame_equal(read(target), TABLE)
    (tmp_path / "other").write_text("")
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == [link.name, "other", target.name]


def test_two_runs_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are in the middle of writing one file: it is one of them, whole, and neither fails."""
    barrier = threading.Barrier(2, timeout=30)
    to_csv = pd.DataFrame.to_csv

    def slowly(table: pd.DataFrame, file: object, **how: object) -> None:
        barrier.wait()
        to_csv(table, file, **how)
        barrier.wait()

    monkeypatch.setattr(pd.DataFrame, "to_csv", slowly)
    tables = [pd.DataFrame({"n": range(number, number + 1000)}) for number in (0, 5000)]
    failed: list[BaseException] = []

    def write(table: pd.DataFrame) -> None:
        try:
            write_table(table, tmp_path / "out.csv")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = pd.read_csv(tmp_path / "out.csv")
    assert any(found.equals(table) for table in tables)
    assert os.listdir(tmp_path) == ["out.csv"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted write changes nothing."""
    (tmp_path / "out.csv").write_text("before")

    def broken(table: pd.DataFrame, file: object, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", broken)
    with pytest.raises(KeyboardInterrupt):
        write_table(TABLE, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "before"
    assert os.listdir(tmp_path) == ["out.csv"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("a\0.csv", "NUL"),
        ("~nobody-at-all/a.csv", "no such user"),
        ("a" * 300 + ".csv", "too long"),
        ("a\ud800.csv", "half a character"),
        (True, "got bool"),
        (5, "got int"),
        (b"a.csv", "got bytes"),
        ([[]], "got list"),
    ],
)
def test_paths_that_no_file_has(path: Any, reason: str) -> None:
    """Before any work, in a sentence, wherever a path of a run is named."""
    for refused in (
        lambda: place_of(path, record=None, shard=None, ray=False),
        lambda: require_writable_table(path),
        lambda: record_path(path, None),
        lambda: tlsv.merge(path),
    ):
        with pytest.raises(ValueError, match=reason):
            refused()


@pytest.mark.parametrize("path", ["", "a\0.csv", "~nobody-at-all/a.csv", "a" * 300 + ".csv", "a\ud800.csv"])
def test_facts_that_no_file_has(path: str) -> None:
    """Those that are read, too."""
    with pytest.raises(ValueError, match=r"path is empty|NUL|no such user|too long|half a character"):
        read_rows(path)


def test_the_home_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table goes where `~` leads, and parts too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    require_writable_table("~/out.csv")
    write_table(TABLE, "~/out.csv")
    assert os.listdir(tmp_path) == ["out.csv"]
    place = place_of("~/parts", record=None, shard=None, ray=False)
    assert place is not None
    assert place.folder == tmp_path / "parts"
    (tmp_path / "facts.csv").write_text("prompt,target\nOne,two\n")
    assert [row.columns["target"] for row in read_rows("~/facts.csv")] == ["two"]
