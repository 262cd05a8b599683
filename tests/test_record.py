"""The record of a long run: cut anywhere, it is continued to the same end."""

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tl_subvalues.study.record import record_path, resumed

SETTINGS = {"what": "test", "ks": (1, 2), "seed": 0}
COUNT = 5


def work(number: int) -> dict[str, Any]:
    return {"number": number, "third": number / 3, "word": "é" * number, "pair": (1, 2)}


def test_cut_at_any_byte_it_goes_on(tmp_path: Path) -> None:
    """Whatever was written before the kill: the same items, each worked out at most once, and the same file."""
    path = tmp_path / "record.jsonl"
    expected = list(resumed(None, SETTINGS, COUNT, work))
    assert list(resumed(path, SETTINGS, COUNT, work)) == expected
    whole = path.read_bytes()
    assert expected[3] == {"number": 3, "third": 1.0, "word": "ééé", "pair": [1, 2]}
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        made: list[int] = []

        def counted(number: int, made: list[int] = made) -> dict[str, Any]:
            made.append(number)
            return work(number)

        assert list(resumed(path, SETTINGS, COUNT, counted)) == expected
        assert path.read_bytes() == whole
        assert made == list(range(max(0, whole[:cut].count(b"\n") - 1), COUNT))
    assert [file.name for file in tmp_path.iterdir()] == ["record.jsonl"]


def test_an_exception_keeps_what_was_done(tmp_path: Path) -> None:
    """The item that failed is worked out again, those before it are not."""
    path = tmp_path / "record.jsonl"

    def failing(number: int) -> dict[str, Any]:
        if number == 3:
            raise ArithmeticError
        return work(number)

    with pytest.raises(ArithmeticError):
        list(resumed(path, SETTINGS, COUNT, failing))
    made: list[int] = []
    list(resumed(path, SETTINGS, COUNT, lambda number: (made.append(number), work(number))[1]))
    assert made == [3, 4]


def test_records_that_do_not_belong(tmp_path: Path) -> None:
    """Other settings, other files, items out of order: refused, and the file is left as it was."""
    path = tmp_path / "record.jsonl"
    list(resumed(path, SETTINGS, COUNT, work))
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="another seed;"):
        list(resumed(path, {**SETTINGS, "seed": 1}, COUNT, work))
    with pytest.raises(ValueError, match="another more;"):
        list(resumed(path, {**SETTINGS, "more": 1}, COUNT, work))
    with pytest.raises(ValueError, match="not item"):
        list(resumed(path, SETTINGS, COUNT - 1, work))
    assert path.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    for content, says in (
        (b"prompt,target\n", "no record"),
        (b"my only copy", "no record"),
        (b"[1]\n", "no record"),
        (lines[0] + lines[1] + lines[1], "line 3 is not item 1"),
        (lines[0] + lines[2], "line 2 is not item 0"),
        (lines[0] + b"{torn\n" + lines[2], "line 2 is no record"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says):
            list(resumed(path, SETTINGS, COUNT, work))
        assert path.read_bytes() == content


def test_two_runs_do_not_write_one_record(tmp_path: Path) -> None:
    """While one run holds it, another is refused."""
    path = tmp_path / "record.jsonl"
    with FileLock(f"{path}.lock"), pytest.raises(ValueError, match="another run"):
        list(resumed(path, SETTINGS, COUNT, work))


def test_where_it_is_kept(tmp_path: Path) -> None:
    """As asked, beside the output, or nowhere; the folder must exist."""
    assert record_path(None, None) is None
    assert record_path(None, tmp_path / "a.csv") == tmp_path / "a.csv.record.jsonl"
    assert record_path(tmp_path / "b", tmp_path / "a.csv") == tmp_path / "b"
    with pytest.raises(ValueError, match="folder"):
        record_path(tmp_path / "no" / "b", None)
