"""Progress as it is shown: every line says what it is of, and a search ends with how many it took."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release


def states(text: str) -> list[str]:
    """What stood on the screen's line, one after the other."""
    return [state.strip() for state in text.replace("\n", "\r").split("\r") if state.strip()]


@pytest.fixture
def trace(tokens: Tensor) -> tlsv.Trace:
    """Of a model whose bounds are near its values, as those of trained models are."""
    model = zoo.model("llama")
    (model.unembed.original_component.weight if zoo.has_bridge() else model.unembed.W_U).data.mul_(0.2)
    return tlsv.trace(model, tokens, 5)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_subvalues.numerics import softmax

    monkeypatch.setattr(softmax, "VECTOR_BLOCK", 4)


@pytest.mark.usefixtures("small_blocks")
def test_a_search_ends_with_what_it_took(trace: tlsv.Trace, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name, how many were evaluated of how many, and that this is exact; then the line is gone."""
    for call, name, total in (
        (trace.ffn_neurons, "FFN neurons", 96),
        (trace.attn_neurons, "attention neurons", 2 * 4 * 8 * 7),
        (trace.head_positions, "heads at source positions", 2 * 4 * 7),
    ):
        certificate = call(2, show_progress=True).attrs["certificate"]
        assert certificate["method"] == "bound"
        assert certificate["evaluated"] < total
        text = capsys.readouterr().err
        shown = states(text)
        assert shown[0].startswith(f"{name}: 0 of {total} evaluated")
        assert shown[-1].startswith(f"{name}: {certificate['evaluated']} of {total} evaluated, exact")
        assert not any("%" in state for state in shown)
        assert not text.endswith("\n")
        assert text.split("\r")[-2].strip() == ""


def test_a_sweep_has_its_name(trace: tlsv.Trace, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar that runs to 100%, of one prompt and of several together."""
    trace.heads(show_progress=True)
    assert all(state.startswith("attention heads: ") for state in states(capsys.readouterr().err))
    batch = tlsv.trace_batch(trace.model, [[3, 4], [5, 6, 7]], [5, 6], show_progress=True)
    assert states(capsys.readouterr().err)[0].startswith("tracing: ")
    batch.ffn_neurons(top=None, show_progress=True)
    shown = states(capsys.readouterr().err)
    assert all(state.startswith("FFN neurons of 2 prompts: ") for state in shown)


@pytest.mark.slow
def test_long_runs_are_shown_to_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate` and `collect` show a bar in a terminal or a notebook, none in a pipe, and as they are told."""
    model, facts = zoo.model("llama"), pd.DataFrame({"prompt": [[3, 4], [5, 6]], "target": [5, 6]})

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    from tl_subvalues import progress

    def shown(screen: io.StringIO, call: Any, **keywords: Any) -> str:
        monkeypatch.setattr(sys, "stderr", screen)
        call(model, facts, **keywords)
        return screen.getvalue()

    evaluating = {"ks": (2,), "rankings": "norm"}
    for call, name, keywords in ((tlsv.evaluate, "evaluate", evaluating), (tlsv.collect, "collect", {"top": 2})):
        assert shown(io.StringIO(), call, **keywords) == ""
        assert states(shown(Terminal(), call, **keywords))[0].startswith(f"{name}: ")
        assert shown(Terminal(), call, show_progress=False, **keywords) == ""
        assert shown(io.StringIO(), call, show_progress=True, **keywords) != ""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not progress.watched()
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress.watched()
