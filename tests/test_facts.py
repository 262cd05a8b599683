"""Reading facts: what is good, what is bad and where it stands."""

from pathlib import Path

import pandas as pd
import pytest
from helpers import zoo

from tl_subvalues.model_view import view_of
from tl_subvalues.study.facts import check_facts
from tl_subvalues.study.sources import read_rows

pytestmark = pytest.mark.any_release

BAD = (
    "kind,prompt,target\n"
    "a,w3 w4,w5\n"  # 2
    "a,w3 w4,w5 w6\n"  # 3: two tokens
    'b,"w3\nw7 w8",w9\n'  # 4 and 5
    "b,,w9\n"  # 6: no prompt
    "\n"  # 7
    "c,w3 w4,w5,w6\n"  # 8: a field too many
    "c,w3 w4\n"  # 9: one too few
    "d,w5 w4,w3\n"  # 10
)


@pytest.fixture(scope="module")
def view() -> object:
    return view_of(zoo.model("llama"))


def test_bad_rows_are_named_by_line(view: object, tmp_path: Path) -> None:
    """All of them in one error, or left out and listed; a field over two lines does not shift the count."""
    path = tmp_path / "facts.csv"
    path.write_text("\ufeff" + BAD, encoding="utf-8")
    rows = read_rows(path)
    with pytest.raises(ValueError) as caught:
        check_facts(view, rows)
    for place, why in (
        ("line 3", "2 tokens"),
        ("line 6", "prompt is empty"),
        ("line 8", "4 fields"),
        ("line 9", "2 fields"),
    ):
        assert f"{place}: " in str(caught.value)
        assert why in str(caught.value).split(place)[1]
    checked = check_facts(view, rows, on_error="skip", prepend_bos=False)
    assert [problem.split(":")[0] for problem in checked.skipped] == ["line 3", "line 6", "line 8", "line 9"]
    assert [fact.columns["kind"] for fact in checked.facts] == ["a", "b", "d"]
    assert [fact.tokens.tolist() for fact in checked.facts] == [[3, 4], [3, 7, 8], [5, 4]]
    assert [fact.asked.ids for fact in checked.facts] == [(5,), (9,), (3,)]


def test_tables(view: object) -> None:
    """A DataFrame may hold token ids; a missing value is a bad row."""
    table = pd.DataFrame({"prompt": ["w3 w4", [3, 4], None, "w3"], "target": ["w5", 6, "w5", float("nan")]})
    checked = check_facts(view, read_rows(table), on_error="skip", prepend_bos=False)
    assert [(fact.tokens.tolist(), fact.asked.ids) for fact in checked.facts] == [([3, 4], (5,)), ([3, 4], (6,))]
    assert checked.skipped == ["row 2: the prompt is empty", "row 3: the target is empty"]


def test_what_cannot_be_read(view: object, tmp_path: Path) -> None:
    """Columns, encoding, an empty file, an unknown policy: one sentence each."""
    path = tmp_path / "facts.csv"
    for content, says in (
        (b"prompt,word\nw3,w4\n", "no column target"),
        (b"", "no column prompt and target"),
        (b"prompt,target\n\xff\xfe,w4\n", "UTF-8"),
        (b"prompt,target\n", "no rows"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says):
            check_facts(view, read_rows(path))
    with pytest.raises(ValueError, match="no column target"):
        read_rows(pd.DataFrame({"prompt": ["w3"]}))
    with pytest.raises(ValueError, match="got list"):
        read_rows([("w3", "w4")])
    with pytest.raises(ValueError, match="'stop' or 'skip'"):
        check_facts(view, [], on_error="ignore")
    with pytest.raises(OSError, match="nowhere"):
        read_rows(tmp_path / "nowhere.csv")


@pytest.mark.slow
@pytest.mark.real_model
def test_the_demo_s_facts_are_all_good() -> None:
    """Every target in demos/data is one token of the embedded model's tokenizer, no prompt stands there twice."""
    import tl_subvalues as tlsv

    data = Path(__file__).parent.parent / "demos" / "data"
    facts = check_facts(view_of(tlsv.load_model()), read_rows(data / "facts.csv"))
    assert len(facts.facts) == 249
    assert len({tuple(fact.tokens.tolist()) for fact in facts.facts}) == 249
    checked = pd.read_csv(data / "facts_checked.csv")
    assert checked["answered"].sum() == (checked["rank"] == 1).sum() == 143


def test_a_cell_that_is_too_long_is_named_by_line(tmp_path: Path) -> None:
    """A mark of quotation that is not closed swallows the rest of a file: the line where it stands is told."""
    path = tmp_path / "facts.csv"
    rows = "w3 w4,w5\n" * 20_000
    for content, line in (
        (f'prompt,target\nw3,w4\n"w3 w4,w5\n{rows}', 3),
        (f"prompt,target\n{'w3 ' * 50_000},w4\n", 2),
        (f'"prompt,target\n{rows}', 1),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"facts\.csv, line {line}: a cell of over 131,072 characters"):
            read_rows(path)
