"""The record of a long run: cut anywhere, it is continued to the same end; damaged anywhere, it is refused."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tl_subvalues.study.record import _check_of, _line, record_path, resumed

pytestmark = pytest.mark.any_release

SETTINGS = {"what": "test", "ks": (1, 2), "seed": 0}
COUNT = 5


def item(number: int) -> dict[str, Any]:
    return {"number": number, "third": number / 3, "word": "é" * number, "pair": (1, 2)}


def work(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [item(number) for number in numbers]


@pytest.mark.slow
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

        def counted(numbers: Sequence[int], made: list[int] = made) -> list[dict[str, Any]]:
            made.extend(numbers)
            return work(numbers)

        assert list(resumed(path, SETTINGS, COUNT, counted)) == expected
        assert path.read_bytes() == whole
        assert made == list(range(max(0, whole[:cut].count(b"\n") - 1), COUNT))
    assert [file.name for file in tmp_path.iterdir()] == ["record.jsonl"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_batches_are_continued_in_their_middle(tmp_path: Path, size: int) -> None:
    """Whatever the batches before the kill and after it: the same file, no item worked out twice."""
    path = tmp_path / "record.jsonl"
    expected = list(resumed(path, SETTINGS, COUNT, work, size))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for done in range(COUNT + 1):
        path.write_bytes(b"".join(lines[: done + 1]))
        made: list[Sequence[int]] = []

        def counted(numbers: Sequence[int], made: list[Sequence[int]] = made) -> list[dict[str, Any]]:
            made.append(numbers)
            return work(numbers)

        assert list(resumed(path, SETTINGS, COUNT, counted, size)) == expected
        assert path.read_bytes() == whole
        assert [number for batch in made for number in batch] == list(range(done, COUNT))
        assert all(len(batch) == size for batch in made[:-1])


def test_an_exception_keeps_what_was_done(tmp_path: Path) -> None:
    """The item that failed is worked out again, those before it are not."""
    path = tmp_path / "record.jsonl"

    def failing(numbers: Sequence[int]) -> list[dict[str, Any]]:
        if 3 in numbers:
            raise ArithmeticError
        return work(numbers)

    with pytest.raises(ArithmeticError):
        list(resumed(path, SETTINGS, COUNT, failing))
    made: list[int] = []
    list(resumed(path, SETTINGS, COUNT, lambda numbers: (made.extend(numbers), work(numbers))[1]))
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


def test_a_flipped_bit_never_gives_other_results(tmp_path: Path) -> None:
    """Anywhere in the file: one sentence that names it, or (a last line that looks torn) the same results again."""
    path = tmp_path / "record.jsonl"
    expected = list(resumed(path, SETTINGS, COUNT, work))
    whole, generator = path.read_bytes(), random.Random(0)
    said: list[str] = []
    unchanged: list[bool] = []
    for place in generator.sample(range(8 * len(whole)), 150):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert list(resumed(path, SETTINGS, COUNT, work)) == expected
        except ValueError as error:
            said.append(str(error))
            unchanged.append(path.read_bytes() == damaged)
    assert len(said) > 140
    assert all("record.jsonl" in message and "\n" not in message for message in said)
    assert all(unchanged)


def test_lines_of_another_form(tmp_path: Path) -> None:
    """JSON without what an item has, another record's line: one sentence that names file and line."""
    path, other = tmp_path / "record.jsonl", tmp_path / "other.jsonl"
    list(resumed(path, SETTINGS, COUNT, work))
    list(resumed(other, {**SETTINGS, "seed": 1}, COUNT, lambda numbers: [{"number": -number} for number in numbers]))
    lines, others = path.read_bytes().splitlines(keepends=True), other.read_bytes().splitlines(keepends=True)
    for line, says in (
        (b'{"item": 0}\n', "no record"),
        (b'{"item": 0, "result": 7}\n', "no record"),
        (b'{"item": 0, "result": {"number": 0}}\n', "no record"),
        (b"7\n", "no record"),
        (b"[" * 100_000 + b"\n", "no record"),
        (lines[1].replace(b'"number": 0', b'"number": 1'), "not as it was written"),
        (others[1], "not as it was written"),
    ):
        path.write_bytes(lines[0] + line)
        with pytest.raises(ValueError, match=rf"record\.jsonl, line 2 is {says}") as caught:
            list(resumed(path, SETTINGS, COUNT, work))
        assert "\n" not in str(caught.value)
    for form in ({"item": 0}, {"item": 0, "result": 7}, {"result": {}}):  # with a digest that is right
        path.write_bytes(lines[0] + _line(form, _check_of(lines[0])))
        with pytest.raises(ValueError, match=r"record\.jsonl, line 2 is no record"):
            list(resumed(path, SETTINGS, COUNT, work))
    path.write_bytes(lines[0].replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(ValueError, match="line 1 is not as it was written"):
        list(resumed(path, {**SETTINGS, "seed": 1}, COUNT, work))


def test_two_names_of_one_record(tmp_path: Path) -> None:
    """A path with dots in it and a link are the same file: one run holds it, another is refused."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "record.jsonl"
    link = tmp_path / "folder" / "link.jsonl"
    link.symlink_to(path)
    running = resumed(path, SETTINGS, COUNT, work)
    next(running)
    for name in (tmp_path / "folder" / ".." / "record.jsonl", link):
        with pytest.raises(ValueError, match="another run"):
            next(resumed(name, SETTINGS, COUNT, work))
    assert len(list(running)) == COUNT - 1
    assert len(list(resumed(link, SETTINGS, COUNT, lambda numbers: pytest.fail("worked out again")))) == COUNT
    assert sorted(file.name for file in tmp_path.rglob("*.jsonl*")) == ["link.jsonl", "record.jsonl"]


def test_settings_are_worked_out_only_where_a_record_is_kept(tmp_path: Path) -> None:
    """They may take all of a model's weights."""
    asked: list[int] = []

    def settings() -> dict[str, Any]:
        asked.append(1)
        return SETTINGS

    list(resumed(None, settings, COUNT, work))
    assert not asked
    list(resumed(tmp_path / "record.jsonl", settings, COUNT, work))
    list(resumed(tmp_path / "record.jsonl", SETTINGS, COUNT, lambda numbers: pytest.fail("worked out again")))
    assert asked == [1]
    assert json.loads((tmp_path / "record.jsonl").read_bytes().splitlines()[0])["what"] == "test"
