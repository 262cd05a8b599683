"""What is drawn: bars, points, labels and units, compared with the tables."""

import dataclasses

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.command.pictures import save_all

matplotlib.use("Agg")
from matplotlib import pyplot

pytestmark = pytest.mark.any_release


@pytest.fixture(scope="module")
def trace(tokens: torch.Tensor) -> tlsv.Trace:
    return tlsv.trace(zoo.model("llama"), tokens, 5)


@pytest.fixture
def ax():
    yield pyplot.subplots()[1]
    pyplot.close("all")


def labels(ax) -> tuple[str, str]:
    return ax.get_xlabel(), ax.get_ylabel()


def test_layers(trace, ax) -> None:
    """One bar a sublayer, of its increase, attention left of FFN in each layer."""
    assert trace.plot_layers(ax=ax) is ax
    attn, ffn = ax.containers
    table = trace.layers().set_index(["sublayer", "layer"])["log_prob_increase"]
    assert [bar.get_height() for bar in attn] == pytest.approx(table["attn"].tolist())
    assert [bar.get_height() for bar in ffn] == pytest.approx(table["mlp"].tolist())
    assert [round(bar.get_x() + bar.get_width() / 2 + 0.2) for bar in attn] == [0, 1]
    assert labels(ax) == ("layer", "increase of log p (nats)")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["attention", "FFN"]
    assert repr(trace.target_token) in ax.get_title()
    assert attn[0].get_facecolor() != ffn[0].get_facecolor()


def test_heads(trace, ax) -> None:
    """The map's cell (layer, head) is that head's increase; the colours are symmetric around zero."""
    trace.plot_heads(ax=ax)
    (image,) = ax.images
    table = trace.heads()
    for row in table.itertuples():
        assert image.get_array()[row.layer, row.head] == pytest.approx(row.log_prob_increase)
    low, high = image.get_clim()
    assert -low == high == pytest.approx(table["log_prob_increase"].abs().max())
    assert labels(ax) == ("head", "layer")
    assert image.colorbar.ax.get_ylabel() == "increase of log p (nats)"
    assert {text.get_text(): text.xy for text in ax.texts} == {
        r.label: (r.head, r.layer) for r in table.head(3).itertuples()
    }
    assert image.origin == "lower"
    assert image.get_extent() == [-0.5, 3.5, -0.5, 1.5]


def test_neurons(trace, ax) -> None:
    """Each line counts the top neurons of its kind, layer by layer."""
    trace.plot_neurons(20, ax=ax)
    drawn = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    values = [trace.attn_neurons(20), trace.ffn_neurons(20)]
    tables = dict(zip(["attention value neurons", "FFN value neurons"], values, strict=True))
    tables["FFN query neurons"] = trace.query_ffn_neurons(pd.concat(values), top=20)
    assert drawn == {name: [int((t["layer"] == layer).sum()) for layer in (0, 1)] for name, t in tables.items()}
    assert sum(drawn["FFN value neurons"]) == 20
    assert labels(ax) == ("layer", "neurons")
    assert "top 20" in ax.get_title()


def test_curve(trace, ax) -> None:
    """log p on the left axis, p on the right, both over the steps of the table."""
    table = trace.ffn_neurons(10)
    expected = trace.curve(table)
    trace.plot_curve(table, ax=ax)
    (right,) = [other for other in ax.figure.axes if other is not ax]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), expected[["step", "log_prob"]])
    np.testing.assert_allclose(right.lines[0].get_xydata(), expected[["step", "prob"]])
    assert labels(ax) == ("subvalues added", "log p (nats)")
    assert right.get_ylabel() == "p"
    assert ax.lines[0].get_linestyle() != right.lines[0].get_linestyle()
    trace.plot_curve(ax=pyplot.subplots()[1])
    assert len(pyplot.gca().lines[0].get_xdata()) == len(trace.layers()) + 1


def test_activations(trace, ax) -> None:
    """The strongest components in the table's order, and one bar for all the others."""
    label = trace.ffn_neurons(1)["label"].iloc[0]
    table = trace.activations(label, by="head")
    trace.plot_activations(label, by="head", top=4, ax=ax)
    bars = ax.containers[0]
    assert [bar.get_width() for bar in bars][:4] == pytest.approx(table["score"].head(4).tolist())
    assert bars[4].get_width() == pytest.approx(table["score"].iloc[4:].sum(), abs=1e-6)
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == [*table["label"].head(4), f"{len(table) - 4} others, summed"]
    assert f"coefficient, {table['score'].sum():+.2f}".replace("-", "−") in ax.get_xlabel()
    assert label in ax.get_title()
    assert ax.yaxis_inverted()
    kinds = {"attn": matplotlib.colors.to_rgba("#0072B2"), "mlp": matplotlib.colors.to_rgba("#E69F00")}
    for bar, name in zip(bars, names[:4], strict=False):
        if name.startswith("L") or name.endswith("_out"):
            assert bar.get_facecolor() == kinds["mlp" if "mlp" in name else "attn"]


def test_all_activations(trace) -> None:
    """With top=None every component has its bar and there is no rest; a nonsensical number is refused."""
    label = trace.ffn_neurons(1)["label"].iloc[0]
    ax = trace.plot_activations(label, top=None)
    table = trace.activations(label)
    assert [bar.get_width() for bar in ax.containers[0]] == pytest.approx(table["score"].tolist())
    pyplot.close("all")
    with pytest.raises(ValueError, match="top is a positive number"):
        trace.plot_activations(label, top=0)


@pytest.mark.slow
def test_saved_pictures_are_what_their_names_say(trace, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is the picture of its name."""
    drawn = {}
    save = matplotlib.figure.Figure.savefig

    def keep(figure, path, **options) -> None:
        drawn[path.stem] = figure.axes[0].get_title()
        save(figure, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    save_all(trace, trace.ffn_neurons(1)["label"].iloc[0], tmp_path)
    begins = {"layers": "Sublayers", "heads": "Attention heads", "neurons": "Top neurons", "curve": "From 0_pre"}
    assert {name: title for name, title in drawn.items() if not title.startswith(begins.get(name, "L"))} == {}
    assert "switched on by" in drawn["activations"]


def test_a_figure_of_its_own(trace) -> None:
    """Without ax= each picture makes a figure; a dollar sign in the title is no mathematics."""
    axes = [trace.plot_layers(), trace.plot_heads(), trace.plot_neurons(5), trace.plot_curve()]
    assert len({ax.figure for ax in axes}) == 4
    pyplot.close("all")
    ax = dataclasses.replace(trace, str_tokens=["$a", "$b"] * 4).plot_layers()
    ax.figure.canvas.draw()
    assert r"\$a\$b" in ax.get_title()
    pyplot.close("all")


def test_without_matplotlib(trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra to install."""
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"tl-subvalues\[plots\]"):
        trace.plot_layers()
