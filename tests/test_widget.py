"""`trace.widget()`: messages answered as the server's are, in JupyterLab, and what stays of it in an export."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import zoo
from helpers.browser import browser, violations
from helpers.command import tiny_folder
from helpers.lab import environment, lab, notebook
from playwright.sync_api import expect

import tl_subvalues as tlsv
from tl_subvalues.live.session import Session
from tl_subvalues.show.html import style
from tl_subvalues.tracing.tracer import Tracer

pytestmark = [pytest.mark.slow, pytest.mark.any_release, pytest.mark.bridge]
PROMPT = "w3 w4 w5"


@pytest.fixture(scope="module")
def trace() -> tlsv.Trace:
    return tlsv.trace(zoo.bridge("llama"), PROMPT, "w6")


def cells(folder: Path, *more: str) -> list[str]:
    code = f"""import tl_subvalues as tlsv
model = tlsv.load_model({str(folder)!r}, device="cpu")
widget = tlsv.trace(model, {PROMPT!r}, "w6").widget(top=5)
widget"""
    return [code, *more]


@pytest.fixture
def asked(trace: tlsv.Trace) -> tuple[Any, Callable[..., Any]]:
    """A widget, and what its page is told for a question."""
    widget = trace.widget(top=5)
    sent: list[Any] = []
    widget.send = lambda content, buffers=None: sent.append(content)

    def ask(**question: Any) -> Any:
        widget._handle_custom_msg({"id": "7", "question": question}, [])
        found = sent.pop()
        assert found["id"] == "7"
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        return found["answer"]

    return widget, ask


def test_messages_are_answered_as_the_servers(trace: tlsv.Trace, asked: Any) -> None:
    """The same answers of the same object, and the document is the page's."""
    widget, ask = asked
    session = Session(Tracer(trace.model, top=5))
    first = session.keep(trace)
    assert widget.shown == {"trace": 1, "document": first["document"]}
    for label in ("L1N3", "L0H2", "L1H1D3@2", "1_mlp_out"):
        question = {"ask": "part", "trace": 1, "label": label}
        assert ask(**question) == session.answer(question)
    for wrong in ({"ask": "part", "trace": 1, "label": "L9N3"}, {"ask": "part"}, {"ask": "rm"}, {}):
        assert ask(**wrong) == session.answer(wrong)
        assert "error" in ask(**wrong)
    widget._handle_custom_msg("nothing", [])
    widget._handle_custom_msg({"id": 3}, [])


def test_another_word_is_shown_by_all_views(trace: tlsv.Trace, asked: Any) -> None:
    """The document changes, and `widget.trace` is the new word's; the old trace is as it was."""
    widget, ask = asked
    assert widget.trace is trace
    assert ask(ask="retarget", trace=1, token=9) == {"trace": 2}
    own = tlsv.trace(trace.model, PROMPT, 9)
    assert widget.shown["trace"] == 2
    assert widget.shown["document"]["target"]["log_prob"] == pytest.approx(own.log_prob, abs=1e-6)
    assert widget.trace.target_ids == [9]
    assert trace.target_ids == [6]


def test_it_is_the_pages_own_module_and_fetches_nothing(asked: Any) -> None:
    """One module, no address in it; its style is the page's."""
    widget, _ = asked
    assert "export default" in widget._esm
    assert widget._esm.count("export ") == 1
    assert "http" not in widget._esm.replace("http://www.w3.org/2000/svg", "")
    assert "fetch(" not in widget._esm
    assert widget._css == style()


def test_what_is_no_widget_says_so(trace: tlsv.Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of rows that is none, an opened trace, an environment without the extra."""
    with pytest.raises(ValueError, match="top is a positive number of rows"):
        trace.widget(top=0)
    trace.save(tmp_path / "t.zip", top=3)
    with pytest.raises(ValueError, match="widget needs the model"):
        tlsv.open_trace(tmp_path / "t.zip").widget()
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "tl_subvalues.live.widget", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'tl-subvalues\[widget\]'"):
        trace.widget()


def test_an_export_keeps_the_summary(tmp_path: Path) -> None:
    """Beside the widget's own output, which shows nothing offline."""
    path = notebook(tmp_path / "t.ipynb", *cells(tiny_folder(tmp_path / "tiny")))
    convert = [sys.executable, "-m", "nbconvert", "--log-level=ERROR", "--to"]
    settings = {"env": {**os.environ, **environment(tmp_path)}, "check": True, "timeout": 120}
    subprocess.run([*convert, "notebook", "--execute", "--inplace", str(path)], **settings)
    outputs = nbformat.read(path, as_version=4).cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in outputs[-2].data
    assert set(outputs[-1].data) == {"text/html", "text/plain"}
    subprocess.run([*convert, "html", "--output-dir", str(tmp_path), str(path)], **settings)
    text = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "<caption>FFN neurons</caption>" in text


def test_in_jupyterlab(tmp_path: Path) -> None:
    """The view with its summary below; a part that is not there is pinned; another word; keys stay in the view."""
    path = notebook(tmp_path / "t.ipynb", *cells(tiny_folder(tmp_path / "tiny"), "print(widget.trace.target_token)"))
    with (
        lab(path, tmp_path) as address,
        browser() as chromium,
        chromium.page(address, viewport={"width": 1500, "height": 1100}) as (shown, seen),
    ):
        first = shown.locator(".jp-Notebook .jp-CodeCell").first
        first.locator(".cm-content").click(timeout=60_000)
        shown.keyboard.press("Shift+Enter")
        view = shown.locator(".jp-OutputArea .tlsv")
        expect(view.locator("h1")).to_have_text("Where does w6 come from?", timeout=90_000)
        expect(first.locator(".jp-RenderedHTML caption")).to_have_text(["Heads at a source position", "FFN neurons"])
        there = set(view.locator("[data-part]").evaluate_all("all => all.map(one => one.dataset.part)"))
        label = next(f"L{layer}N{n}" for layer in (0, 1) for n in range(48) if f"L{layer}N{n}" not in there)
        box = view.get_by_label("any part")
        box.fill(label)
        box.press("Enter")
        card = view.locator(f".panel article[data-part='{label}']")
        expect(card).to_contain_text("switched on by", timeout=30_000)
        expect(card).to_contain_text("measured: lost without it")
        box.fill("L9N9")
        box.press("Enter")
        expect(view.locator(".panel article[data-part='L9N9']")).to_contain_text("'L9N9' is not in this trace")
        view.locator(".grid td[tabindex='0']").focus()
        before = view.locator(".grid td:focus").get_attribute("aria-label")
        shown.keyboard.press("ArrowDown")
        assert view.locator(".grid td:focus").get_attribute("aria-label") != before
        view.get_by_text("what else the model would say").click()
        other = view.locator(".predictions button").first
        word = other.inner_text()
        other.click()
        expect(view.locator("h1")).to_have_text(f"Where does {word} come from?", timeout=60_000)
        shown.locator(".jp-Notebook .jp-CodeCell .cm-content").nth(1).click()
        shown.keyboard.press("Shift+Enter")
        expect(shown.locator(".jp-Notebook .jp-CodeCell").nth(1).locator(".jp-OutputArea-output")).to_have_text(
            word, timeout=30_000
        )
        found = violations(shown, ".jp-OutputArea .tlsv")
        assert found == []
        assert seen.requests == []
