"""Finished traces: what is written is what is opened, without torch; what is no trace, or not in it, is refused."""

import copy
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.saved import files
from tl_subvalues.saved.document import SCHEMA
from tl_subvalues.saved.opened import SavedTrace
from tl_subvalues.saved.packing import packed, unpacked

pytestmark = pytest.mark.any_release

ROOT = Path(tlsv.__file__).parents[1]
TABLES = ("layers", "heads", "head_positions", "attn_neurons", "ffn_neurons")


@pytest.fixture(scope="module")
def trace(tokens: torch.Tensor) -> tlsv.Trace:
    return tlsv.trace(zoo.model("llama"), tokens, 5)


@pytest.fixture(scope="module")
def path(trace: tlsv.Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("saved") / "trace.zip"
    trace.save(made)
    return made


@pytest.fixture(scope="module")
def document(path: Path) -> dict[str, Any]:
    return files.read(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace", "trace.zip"])
def test_what_is_opened_is_what_was_traced(name: str, trace: tlsv.Trace, tmp_path: Path) -> None:
    """Tables to the bit, dtypes and certificates included; words, scores, curve, effects, graph."""
    trace.save(tmp_path / name)
    opened = tlsv.open_trace(tmp_path / name)
    for table in TABLES:
        expected = getattr(trace, table)()
        pd.testing.assert_frame_equal(getattr(opened, table)(), expected)
        assert getattr(opened, table)().attrs == expected.attrs
    pd.testing.assert_frame_equal(opened.curve(), trace.curve(trace.layers()))
    pd.testing.assert_frame_equal(opened.effects(), trace.effects())
    for by in ("bs_value", "cosine", "prob_increase"):
        pd.testing.assert_frame_equal(opened.vocabulary("L1N3", by=by), trace.vocabulary("L1N3", by=by))
    labels = trace.ffn_neurons(3)["label"].tolist()
    pd.testing.assert_frame_equal(opened.vocabulary(labels, 4), trace.vocabulary(labels, 4))
    pd.testing.assert_frame_equal(opened.activations(labels[0]), trace.activations(labels[0]))
    for table in ("layers", "ffn_neurons"):
        expected = getattr(trace, table)(words=3)
        assert getattr(opened, table)(words=3)["writes"].tolist() == expected["writes"].tolist()
    graph, expected_graph = opened.graph(), trace.graph()
    for one, file in ((graph, "saved.json"), (expected_graph, "own.json")):
        one.to_json(tmp_path / file)
    assert json.loads((tmp_path / "saved.json").read_text()) == json.loads((tmp_path / "own.json").read_text())
    pd.testing.assert_frame_equal(graph.nodes, expected_graph.nodes)
    pd.testing.assert_frame_equal(graph.edges, expected_graph.edges)
    assert (graph.score, graph.rule) == (expected_graph.score, "frozen")
    for name in ("str_tokens", "position", "target_id", "target_token", "target_ids", "against_ids", "against_tokens"):
        assert getattr(opened, name) == getattr(trace, name), name
    for name in ("measure", "log_prob", "prob", "rank", "value", "log_prob_diff", "scale", "target_tokens"):
        assert getattr(opened, name) == getattr(trace, name), name
    assert opened.tokens == trace.tokens.tolist()
    assert opened.versions["torch"] == torch.__version__.split("+")[0] or "+" in opened.versions["torch"]
    assert "w5" in repr(opened)


@pytest.mark.slow
def test_what_is_written_in_this_run(trace: tlsv.Trace, path: Path) -> None:
    """Words, ranks and values as `Trace.writes` has them, of neurons of either sign, heads and sublayers."""
    opened = tlsv.open_trace(path)
    neurons = trace.ffn_neurons()
    assert set(neurons["coefficient"] > 0) == {True, False}
    labels = [*neurons["label"][:20], *trace.attn_neurons(10)["label"], "L1H2", "1_mlp_out"]
    for by in ("cosine", "bs_value", "prob_increase"):
        expected = trace.writes(labels, 3, by=by)
        pd.testing.assert_frame_equal(opened.writes(labels, 3, by=by), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_shorter_top_is_exact_and_certified(trace: tlsv.Trace, tmp_path: Path) -> None:
    """The first rows of a saved table are the top of a smaller k, with a certificate that holds for it."""
    trace.save(tmp_path / "t.zip", top=20)
    opened = tlsv.open_trace(tmp_path / "t.zip")
    found, expected = opened.ffn_neurons(7), trace.ffn_neurons(7)
    assert found["label"].tolist() == expected["label"].tolist()
    certificate = found.attrs["certificate"]
    assert certificate["kth_value"] == found["log_prob_increase"].iloc[-1]
    assert certificate["last_bound"] is None or certificate["last_bound"] <= certificate["kth_value"]
    assert '"kth_value":' + json.dumps(certificate["kth_value"]) in opened.to_html(top=7)
    with pytest.raises(ValueError, match=r"holds the top 20 of ffn_neurons, 21 were asked for.*top=\.\.\."):
        opened.ffn_neurons(21)
    with pytest.raises(ValueError, match="300 were asked for"):
        opened.attn_neurons(300)
    with pytest.raises(ValueError, match="all were asked for"):
        opened.attn_neurons(None)
    assert opened.attn_neurons()["label"].tolist() == trace.attn_neurons(20)["label"].tolist()
    assert len(opened.heads()) == len(trace.heads())


@pytest.mark.slow
def test_of_a_target_against_others_at_a_position(tokens: torch.Tensor, tmp_path: Path) -> None:
    """Several words against several, in the middle of the prompt."""
    trace = tlsv.trace(zoo.model("gpt2"), tokens, [5, 6], against=[7, 8], position=3)
    trace.save(tmp_path / "t.zip")
    opened = tlsv.open_trace(tmp_path / "t.zip")
    assert (opened.against_ids, opened.measure, opened.log_prob_diff) == ([7, 8], "log_prob_diff", trace.log_prob_diff)
    pd.testing.assert_frame_equal(opened.ffn_neurons(), trace.ffn_neurons())
    pd.testing.assert_frame_equal(opened.curve(trace.layers()), trace.curve(trace.layers()))
    assert opened.ffn_neurons(4).attrs["certificate"]["kth_value"] == trace.ffn_neurons(4).iloc[-1, -1]
    rest = tlsv.trace(zoo.model("gpt2"), tokens, 5, against="rest")
    rest.save(tmp_path / "t.zip")
    assert tlsv.open_trace(tmp_path / "t.zip").against_ids == "rest"


@pytest.mark.slow
@pytest.mark.bridge
@pytest.mark.parametrize("family", ["mixtral", "gemma3", "gptj", "lfm2"])
def test_families(family: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    """Experts, post-norms, a pattern that comes too late to ablate, a hybrid: what is missing is named in the notes."""
    trace = tlsv.trace(zoo.bridge(family), tokens, 5)
    trace.save(tmp_path / "t")
    opened = tlsv.open_trace(tmp_path / "t")
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(opened, table)(), getattr(trace, table)())
    assert opened.to_html() == (tmp_path / "t" / "page.html").read_text(encoding="utf-8")
    ablations = opened.document["ablations"]
    assert bool(ablations) != any("ablat" in note for note in opened.document["notes"])


@pytest.mark.hooked
def test_a_model_without_ffn(tokens: torch.Tensor, tmp_path: Path) -> None:
    """What its tables lack is refused by name, the rest is there."""
    trace = tlsv.trace(zoo.hooked("attn_only"), tokens, 5)
    trace.save(tmp_path / "t.zip")
    opened = tlsv.open_trace(tmp_path / "t.zip")
    pd.testing.assert_frame_equal(opened.head_positions(), trace.head_positions())
    assert "<table" in trace._repr_html_()


@pytest.mark.slow
def test_total_effects_and_ablations_are_those_of_the_model(trace: tlsv.Trace, document: dict[str, Any]) -> None:
    """By label: the gradient's effects at the trace's position, and what zero ablation there costs."""
    effects = document["total_effects"]
    for unit, joint in (
        ("ffn_neuron", "@"),
        ("attn_neuron", ">"),
        ("head_position", ">"),
        ("head", "@>"),
        ("sublayer", "@"),
    ):
        table = trace.effects(unit, top=None, positions="last").set_index("label")["total_effect"]
        mine = {label: value for label, value in effects.items() if f"{label}{joint}{trace.position}" in table}
        assert mine, unit
        for label, value in mine.items():
            assert value == pytest.approx(table[f"{label}{joint}{trace.position}"], abs=1e-6), label
    rows = [label for name in TABLES for label in getattr(trace, name)()["label"]]
    assert set(effects) == set(rows)
    first = trace.ffn_neurons(1)["label"].iloc[0]
    done = trace.ablate([first], position=trace.position)
    assert document["ablations"][first] == pytest.approx(done["log_prob_before"] - done["log_prob_after"], abs=1e-5)


@pytest.mark.slow
def test_scores_by_head_add_up_with_the_others(trace: tlsv.Trace, document: dict[str, Any], path: Path) -> None:
    """The strongest by themselves, unchanged; the rest in one row, so that the sum stays."""
    opened = tlsv.open_trace(path)
    for label in document["activations"]:
        expected = trace.activations(label, by="head_position").set_index("label")
        found = opened.activations(label, by="head_position")
        assert found["score"].sum() == pytest.approx(expected["score"].sum(), abs=1e-5)
        own = found[found["label"] != "others"].set_index("label")
        assert own["score"].equals(expected.loc[own.index, "score"])
        left_out = expected.drop(own.index)
        assert found.attrs.get("others", 0) == len(left_out)
        if len(left_out):
            assert left_out["score"].abs().max() <= own.drop("bias")["score"].abs().min()
    assert any(
        "others" in opened.activations(label, by="head_position")["label"].tolist() for label in document["activations"]
    )


@pytest.mark.slow
def test_opening_needs_neither_torch_nor_transformer_lens(path: Path, tmp_path: Path) -> None:
    """With both out of reach, and transformers too: tables, words, the graph, the page, the summary, a copy."""
    code = f"""
import sys
for name in ("torch", "transformer_lens", "transformers", "tokenizers", "safetensors", "einops"):
    sys.modules[name] = None
import tl_subvalues as tlsv
opened = tlsv.open_trace({str(path)!r})
assert len(opened.ffn_neurons(5)) == 5 and len(opened.vocabulary("L1N3", 2)) == 4
assert opened.to_html().startswith("<!DOCTYPE html>") and "<table" in opened._repr_html_()
opened.graph(); opened.curve(); opened.effects()
opened.save({str(tmp_path / "copy")!r})
print(repr(tlsv.open_trace({str(tmp_path / "copy")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SavedTrace(")


@pytest.mark.slow
def test_pandas_reads_the_tables(trace: tlsv.Trace, tmp_path: Path) -> None:
    """Each is a Parquet file of its own; nothing in the folder is a pickle."""
    trace.save(tmp_path / "t")
    for name in TABLES:
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t" / f"{name}.parquet"), getattr(trace, name)())
    for file in (tmp_path / "t").iterdir():
        assert file.suffix in (".json", ".html", ".parquet")
        with pytest.raises(Exception, match=r".*"):
            pickle.loads(file.read_bytes())  # what we wrote ourselves
    assert json.loads((tmp_path / "t" / "trace.json").read_text())["schema"] == SCHEMA


def test_packing_keeps_what_pandas_has() -> None:
    """Missing numbers, infinite ones, whole numbers that may be missing, odd text, lists."""
    odd = "\x00\x1b[2J\u202e\ufffd\"'\\,\n</script>"
    table = pd.DataFrame(
        {
            "a": [1.5, float("nan"), float("-inf")],
            "b": pd.array([1, None, 3], dtype="Int64"),
            "c": [odd, "", "NaN"],
            "d": [[{"head": "L1H1@0", "share": 0.1}], [], []],
            "e": [True, False, True],
        }
    )
    table["f"] = table["a"].astype("float32")
    text = json.dumps(packed(table), allow_nan=False)
    pd.testing.assert_frame_equal(unpacked(json.loads(text)), table)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda t: t.ablate("L1N3"), "ablate needs the model, which a saved trace is without; it holds layers"),
        (lambda t: t.query_layers(t.ffn_neurons()), "query_layers needs the model"),
        (lambda t: t.plot_layers(), "plot_layers needs the model"),
        (lambda t: t.vocabulary("L1N3", through="L1H2"), "through= needs the model"),
        (lambda t: t.graph().ablate(), "needs the model"),
        (lambda t: t.heads(largest=False), "the lowest were asked for"),
        (lambda t: t.vocabulary("L9N9"), r"words of \d+ parts .*, not of 'L9N9'"),
        (lambda t: t.vocabulary("L1N3", 99), "holds 10 words a side, 99 were"),
        (lambda t: t.vocabulary("L1N3", 0), "positive number"),
        (lambda t: t.vocabulary("L1N3", by="cosin"), "words by .*, not by 'cosin'"),
        (lambda t: t.activations("L0N999"), "not of 'L0N999'"),
        (lambda t: t.activations(t.ffn_neurons(1)["label"].iloc[0], by="ffn_neuron"), "not by 'ffn_neuron'"),
        (lambda t: t.effects("head"), "holds effects of unit 'ffn_neuron'"),
        (lambda t: t.graph(nodes=5), "others need the model"),
        (lambda t: t.curve(t.heads()), "curve of layers"),
        (lambda t: t.ffn_neurons(0), "positive number"),
        (lambda t: t.table("nothing"), "no table 'nothing'"),
    ],
)
def test_what_is_not_in_it_is_refused(ask: Callable[[Any], Any], says: str, path: Path) -> None:
    """In one sentence that says what there is."""
    with pytest.raises(ValueError, match=says) as caught:
        ask(tlsv.open_trace(path))
    assert "\n" not in str(caught.value)


def changed(document: dict[str, Any], *keys: Any, to: Any) -> dict[str, Any]:
    """The document with one part replaced, or left out."""
    made = copy.deepcopy(document)
    inner = made
    for key in keys[:-1]:
        inner = inner[key]
    if to is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    return made


LABELS = ("tables", "ffn_neurons", "columns", "label")


@pytest.mark.parametrize(
    ("keys", "to", "says"),
    [
        (("schema",), "tl-subvalues/saved-trace/99", "is of schema 'tl-subvalues/saved-trace/99'"),
        (("schema",), 7, "does not name a schema"),
        (("position",), 1000, "position is not one of its tokens"),
        (("position",), -1, "position is not one of its tokens"),
        (("position",), True, "'position' is no int"),
        (("position",), 2**70, "'position' is no int"),
        (("tokens", "texts"), [1], "'tokens.texts' is no str"),
        (("target", "texts"), [], "no words"),
        (("target", "prob"), [0.5], "'target.prob' is no float"),
        (("target", "against"), "x", "'target.against' is no object"),
        (("tables", "layers"), None, "no table 'layers'"),
        (("tables", "heads"), [], "no table"),
        ((*LABELS, "values"), ["L0N1"], "columns of several lengths"),
        ((*LABELS, "dtype"), "datetime64", "no known dtype"),
        ((*LABELS, "dtype"), ["int64"], "no known dtype"),
        ((*LABELS, "dtype"), "int64", "what is no int64"),
        (("tables", "ffn_neurons", "columns", "coefficient"), None, "coefficient' is missing"),
        (("tables", "ffn_neurons", "attrs", "certificate"), {"method": 1}, "method' is no str"),
        (("words", "bs_value", "L1N3"), {"top": {}}, "is missing"),
        (("graph", "nodes"), {}, "'graph.nodes' is no table"),
        (("graph",), {}, "missing"),
        (("graph", "edges", "columns", "through", "values", 0), [{"head": 3}], "what is no json"),
        (("versions",), {"torch": 3}, "'versions.torch' is no str"),
        (("versions",), {"\udc80": "1"}, "called by no text"),
        (("scale",), "lens", "'scale' is neither 'frozen' nor 'recomputed'"),
        (("target", "measure"), "logit", "'target.measure' is not 'log_prob'"),
        (("target", "measure"), "log_prob_diff", "'target.measure' is not 'log_prob'"),
        (("target", "against"), "rest", "'target.measure' is not 'log_prob_diff'"),
        (("tables", "heads", "columns", "log_prob_increase"), None, "heads.log_prob_increase' is missing"),
        (("tables", "layers", "columns", "log_prob_increase"), None, "layers.log_prob_increase' is missing"),
        (("tables", "heads", "columns", "layer"), {"dtype": "Int64", "values": [None] * 8}, "missing numbers"),
        (("words", "cosine", "L1N3", "top", "ids"), [1, 2], "words, ids and values of several lengths"),
        (("words", "cosine", "L1N3", "top", "texts", 0), "half a \ud83d", "is no str"),
        (("tokens", "texts", 0), "\udfff", "'tokens.texts' is no str"),
        (("tables", "curve", "columns", "\ud800"), {"dtype": "str", "values": []}, "called by no text"),
        (("notes",), [["x"]], "no str"),
    ],
)
def test_damaged_documents_are_refused(keys: Any, to: Any, says: str, document: dict[str, Any], tmp_path: Path) -> None:
    """Each part is held against what it must be, before anything is made of it."""
    (tmp_path / "trace.json").write_text(json.dumps(changed(document, *keys, to=to)), encoding="utf-8")
    with pytest.raises(ValueError, match=says) as caught:
        tlsv.open_trace(tmp_path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("trace.json", "w") as file:
        for _ in range(files.LARGEST // (1 << 20) + 1):
            file.write(b" " * (1 << 20))


def archived(path: Path, *names: str, content: bytes = b"{}") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b""), "neither a folder nor a .zip"),
        (lambda path: path.write_bytes(pickle.dumps({"schema": SCHEMA})), "neither a folder nor a .zip"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(1000)), "neither a folder nor a .zip"),
        (lambda path: archived(path, "other.json"), "there is no trace.json in it"),
        (lambda path: archived(path, "trace.json", "trace.json"), "there is no trace.json in it"),
        (lambda path: archived(path, "../trace.json", "/trace.json"), "there is no trace.json in it"),
        (lambda path: archived(path, "trace.json"), "does not name a schema"),
        (lambda path: archived(path, "trace.json", content=b"[" * 100_000), "no JSON that can be read"),
        (lambda path: archived(path, "trace.json", content=b'{"schema": NaN}'), "no JSON that can be read"),
        (lambda path: archived(path, "trace.json", content=b'{"a": ' + b"9" * 5000 + b"}"), "no JSON that can be read"),
        (lambda path: archived(path, "trace.json", content=b"\xff\xfe"), "no JSON that can be read"),
        (lambda path: path.mkdir(), "there is no trace.json in it"),
        (lambda path: None, "there is no such file"),
        pytest.param(bomb, "larger than 256 MB", marks=pytest.mark.slow),
    ],
)
def test_files_of_others(make: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    """Nothing is unpacked, run, or believed."""
    path = tmp_path / "a\x1b[2J.zip"
    make(path)
    with pytest.raises(ValueError, match=says) as caught:
        tlsv.open_trace(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "the path is empty"),
        ("a\0b", r"a\\x00b.*: no file has a NUL character"),
        ("~nobody-of-that-name/t", r"~nobody-of-that-name/t.*: there is no such user"),
    ],
)
def test_paths_that_none_can_have(path: str, says: str, trace: tlsv.Trace) -> None:
    """One sentence, before the work, whether it is to be written or read."""
    for call in (trace.save, trace.to_html, tlsv.open_trace):
        with pytest.raises(ValueError, match=says) as caught:
            call(path)
        assert "\n" not in str(caught.value)
    if path:
        with pytest.raises(ValueError, match=says):
            tlsv.write_index(trace.model, f"{path}.parquet")


@pytest.mark.slow
def test_what_is_there_is_not_overwritten(trace: tlsv.Trace, tmp_path: Path) -> None:
    """A trace may be saved over a trace; any other folder or file is left alone, before the work."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(ValueError, match="is there and is no saved trace"):
            trace.save(path)
    with pytest.raises(ValueError, match="folder to write into does not exist"):
        trace.save(tmp_path / "no" / "t.zip")
    with pytest.raises(ValueError, match="folder to write into does not exist"):
        trace.to_html(tmp_path / "no" / "t.html")
    with pytest.raises(ValueError, match="not a file"):
        trace.to_html(tmp_path)
    with pytest.raises(ValueError, match="positive number of rows"):
        trace.to_html(top=0)
    trace.save(tmp_path / "t", top=3)
    trace.save(tmp_path / "t", top=2)
    assert len(tlsv.open_trace(tmp_path / "t").ffn_neurons(2)) == 2
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


@pytest.mark.slow
def test_the_same_trace_gives_the_same_file(trace: tlsv.Trace, path: Path, tmp_path: Path) -> None:
    """To the byte: no date, no name of this machine."""
    trace.save(tmp_path / "t.zip")
    assert (tmp_path / "t.zip").read_bytes() == path.read_bytes()


def test_the_summary_is_text(document: dict[str, Any]) -> None:
    """Tokens of others are escaped, what has no shape is shown by its code; no script, style or link."""
    hostile = "</code><script>alert(1)</script>\u202e\x1b[2J\n"
    made = copy.deepcopy(document)
    made["target"]["texts"] = [hostile]
    made["tokens"]["texts"] = [hostile] * len(document["tokens"]["texts"])
    made["model"]["name"] = hostile
    columns = made["tables"]["head_positions"]["columns"]
    columns["token"]["values"] = [hostile] * len(columns["token"]["values"])
    columns["label"]["values"] = [hostile] * len(columns["label"]["values"])
    html = SavedTrace(made)._repr_html_()
    assert "<script" not in html
    assert "‹U+202E›␛[2J⏎" in html
    assert not set(html) & set("\u202e\x1b")
    assert html.isascii() or html.replace("\n", "").isprintable()
