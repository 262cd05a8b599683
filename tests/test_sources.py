"""Facts as users have them: files of several kinds, datasets of Hugging Face, CounterFact's and LAMA's layouts."""

import json
from pathlib import Path
from typing import Any

import jaxtyping
import pandas as pd
import pytest
from helpers import zoo
from helpers.facts import make_facts

import tl_subvalues as tlsv
from tl_subvalues.study.layouts import layout_of
from tl_subvalues.study.parts import Shard
from tl_subvalues.study.sharded import hold
from tl_subvalues.study.sources import read_rows, stream_rows

pytestmark = pytest.mark.any_release
FACTS = make_facts(6)
RECORDS = FACTS.to_dict(orient="records")


def contents(rows: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.columns[name] for name in ("kind", "prompt", "target")) for row in rows]


def written(folder: Path, kind: str) -> Any:
    """The facts as one of the kinds that are read."""
    datasets = pytest.importorskip("datasets")
    path = folder / f"facts.{kind}"
    if kind == "csv":
        FACTS.to_csv(path, index=False)
    elif kind == "parquet":
        FACTS.to_parquet(path, index=False)
    elif kind in ("jsonl", "ndjson"):
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    elif kind == "json":
        path.write_text(json.dumps(RECORDS, indent=1))
    elif kind == "table":
        return FACTS
    else:
        data = datasets.Dataset.from_pandas(FACTS, preserve_index=False)
        if kind == "dataset":
            return data
        path = folder / kind
        if kind == "saved":
            data.save_to_disk(str(path))
        elif kind == "saved_splits":
            datasets.DatasetDict({"test": data}).save_to_disk(str(path))
        elif kind == "files":
            path.mkdir()
            FACTS.to_parquet(path / "train-00000-of-00001.parquet", index=False)
    return path


@pytest.mark.parametrize(
    "kind",
    ["table", "csv", "parquet", "jsonl", "ndjson", "json", "dataset", "saved", "saved_splits", "files"],
)
def test_the_same_facts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they are kept in; and the row's number is its place."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = read_rows(written(tmp_path, kind))
    assert contents(rows) == contents(read_rows(FACTS))
    assert [row.number for row in rows] == list(range(6))
    first = {"csv": "line 2", "jsonl": "line 1", "ndjson": "line 1"}.get(kind, "row 0")
    assert rows[0].where == first


def test_columns_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What prompt, target and against are called; the table of a run is the same."""
    model = zoo.model("llama")
    other = FACTS.rename(columns={"prompt": "question", "target": "answer"}).assign(rival="w9")
    names: dict[str, Any] = {"prompt": "question", "target": "answer"}
    how: dict[str, Any] = {"top": 3, "prepend_bos": False}
    pd.testing.assert_frame_equal(tlsv.collect(model, other, columns=names, **how), tlsv.collect(model, FACTS, **how))
    against = read_rows(other, {**names, "against": "rival"})
    assert {row.columns["against"] for row in against} == {"w9"}
    with pytest.raises(ValueError, match=r"no column prompt and target; facts have"):
        read_rows(other)
    with pytest.raises(ValueError, match=r"no column word; columns="):
        read_rows(other, {**names, "against": "word"})
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="columns says what columns are called"):
        layout_of({"prompt": 1})  # type: ignore[dict-item]


COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native"],
}
SENTENCE = "Allan Peiper was born in [MASK] ."
LAMA: list[tuple[dict[str, Any], tuple[str, str]]] = [
    (
        {"sub_label": "Lyon", "obj_label": "France", "template": "[X] is located in [Y] .", "predicate_id": "P17"},
        ("Lyon is located in", " France"),
    ),
    ({"obj_label": "Alexandra", "masked_sentences": [SENTENCE]}, ("Allan Peiper was born in", " Alexandra")),
    ({"obj_label": "Alexandra", "masked_sentence": SENTENCE}, ("Allan Peiper was born in", " Alexandra")),
    (
        {"obj_label": "Alexandra", "evidences": [{"masked_sentence": SENTENCE, "obj_surface": "Alexandra"}]},
        ("Allan Peiper was born in", " Alexandra"),
    ),
]


def test_counterfact(tmp_path: Path) -> None:
    """The prompt with its subject in place, the true target with its space; the false one for `against`."""
    path = tmp_path / "counterfact.json"
    no_target = {"requested_rewrite": {**COUNTERFACT["requested_rewrite"], "target_true": {}}}  # type: ignore[dict-item]
    path.write_text(json.dumps([COUNTERFACT, no_target, {"requested_rewrite": [COUNTERFACT["requested_rewrite"]]}]))
    rows = read_rows(path, {"against": "target_new"}, "counterfact")
    columns = rows[0].columns
    assert (columns["prompt"], columns["target"]) == ("The mother tongue of Danielle Darrieux is", " French")
    assert (columns["against"], columns["relation"], columns["subject"]) == (" English", "P103", "Danielle Darrieux")
    assert rows[1].problem == "has no target_true"
    assert rows[2].columns["prompt"] == columns["prompt"]
    with pytest.raises(ValueError, match="no column requested_rewrite; the layout counterfact has"):
        read_rows(FACTS, layout="counterfact")


def test_lama(tmp_path: Path) -> None:
    """What stands before the object, from a template or a masked sentence; what goes on after it is named."""
    path = tmp_path / "P17.jsonl"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"obj_label": "x", "masked_sentences": ["The [MASK] is red."]}, "words follow the object: 'is red.'"),
        ({"obj_label": "x", "masked_sentences": ["[MASK]."]}, "nothing stands before"),
        ({"obj_label": "x", "masked_sentences": ["none"]}, "no sentence with one"),
        ({"obj_label": "x"}, "neither a template nor"),
        ({"template": "[X] is [Y]", "sub_label": "y", "obj_label": ""}, "has no obj_label"),
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record, _ in [*LAMA, *bad]))
    rows = read_rows(path, layout="lama")
    for row, (_, (prompt, target)) in zip(rows, LAMA, strict=False):
        assert (row.problem, row.columns["prompt"], row.columns["target"]) == (None, prompt, target)
    for row, (_, says) in zip(rows[len(LAMA) :], bad, strict=True):
        assert row.problem is not None
        assert says in row.problem


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """One sentence each, with the file's name or the line."""
    for name, content, says in (
        ("a.parquet", b"no", r"a\.parquet cannot be read as Parquet"),
        ("a.json", b"[1, ", r"a\.json cannot be read as JSON"),
        ("a.jsonl", b'{"prompt": "w3"}\n', "no column target"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', r"a\.jsonl cannot be read as JSON lines"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=says) as caught:
            read_rows(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match="nowhere"):
        read_rows(tmp_path / "nowhere.parquet")
    (tmp_path / "b.jsonl").write_text('{"prompt": "w3", "target": "w4"}\n{torn\n\n7\n{"prompt": "w3"}\n')
    rows = read_rows(tmp_path / "b.jsonl")
    assert [row.where for row in rows] == ["line 1", "line 2", "line 4", "line 5"]
    assert [row.problem and row.problem.split(" (")[0] for row in rows] == [
        None,
        "is not JSON",
        "a int where an object is needed",
        "has no target",
    ]


def test_datasets_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the hub does not give, splits of which none is named, a folder with nothing in it."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing"):
        read_rows("nobody/nothing")
    data = datasets.Dataset.from_pandas(FACTS, preserve_index=False)
    with pytest.raises(ValueError, match="has the splits train, test; pass one of them"):
        read_rows(datasets.DatasetDict({"train": data, "test": data}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        read_rows(tmp_path / "empty")


@pytest.mark.slow
def test_a_shard_holds_its_own_rows_only(tmp_path: Path) -> None:
    """Of a long file no more is kept than the shard's columns; what all hold is known by a digest."""
    path = tmp_path / "facts.csv"
    with path.open("w") as file:
        file.write("kind,prompt,target,more\n")
        file.writelines(f"a,w{i % 60} w4,w5,{i}\n" for i in range(50_000))
    held = hold(stream_rows(path), Shard(3, 1000), (), lambda row: None)
    assert (len(held.rows), held.total) == (50, 50_000)
    assert [row.number for row in held.rows] == list(range(3, 50_000, 1000))
    assert held.rows[1].where == "line 1005"
    assert set(held.rows[0].columns) == {"prompt", "target"}
    assert hold(stream_rows(path), Shard(0, 2), (), lambda row: None).digest == held.digest
    assert hold(stream_rows(path), Shard(), ("more",), lambda row: None).digest != held.digest
