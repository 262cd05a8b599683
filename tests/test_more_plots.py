"""Pictures of differences, mixers, comparisons and evaluations; tokens and signs as they are written."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.show import plots

matplotlib.use("Agg")
from matplotlib import colors, pyplot

pytestmark = pytest.mark.any_release


@pytest.fixture
def ax():
    yield pyplot.subplots()[1]
    pyplot.close("all")


@pytest.fixture
def trace(tokens: torch.Tensor) -> tlsv.Trace:
    return tlsv.trace(zoo.model("llama"), tokens, 5)


def names(ax) -> list[str]:
    return [tick.get_text() for tick in ax.get_yticklabels()]


@pytest.mark.parametrize("family", ["jamba", "falcon_h1"])
def test_mixers_have_bars(family: str, tokens: torch.Tensor, ax) -> None:
    """Every sublayer of a hybrid has a bar at its layer, of its increase, and its kind is in the legend."""
    trace = tlsv.trace(zoo.bridge(family), tokens, 5)
    trace.plot_layers(ax=ax)
    table = trace.layers()
    drawn = sorted(
        (round(bar.get_x() + bar.get_width() / 2), round(float(bar.get_height()), 5))
        for group in ax.containers
        for bar in group
    )
    assert drawn == sorted((row.layer, round(float(row.log_prob_increase), 5)) for row in table.itertuples())
    mixer = {"jamba": "mixer", "falcon_h1": "mamba"}[family]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["attention", mixer, "FFN"]
    assert len({colors.to_hex(group[0].get_facecolor()) for group in ax.containers}) == 3


def test_pictures_of_a_difference(tokens: torch.Tensor) -> None:
    """Axes and titles say what is measured; the curve draws the difference."""
    trace = tlsv.trace(zoo.model("llama"), tokens, [5, 6], against=[7, 8])
    nats = "increase of difference of log p (nats)"
    bars = trace.plot_layers()
    assert bars.get_ylabel() == nats
    heights = [bar.get_height() for group in bars.containers for bar in group]
    assert sorted(heights) == pytest.approx(sorted(trace.layers()["log_prob_diff_increase"]))
    assert trace.plot_heads().images[0].colorbar.ax.get_ylabel() == nats
    assert "'w5' or 'w6' against 'w7' or 'w8'" in bars.get_title()
    curve = trace.plot_curve()
    np.testing.assert_allclose(curve.lines[0].get_ydata(), trace.curve(trace.layers())["log_prob_diff"])
    assert curve.get_ylabel() == "difference of log p (nats)"
    assert "against the rest" in tlsv.trace(zoo.model("llama"), tokens, 5, against="rest").plot_layers().get_title()
    pyplot.close("all")


def test_a_curve_says_what_is_added(trace: tlsv.Trace) -> None:
    """Sublayers where it is those, subvalues where it is anything else."""
    assert trace.plot_curve().get_xlabel() == "sublayers added"
    assert trace.plot_curve(trace.ffn_neurons(3)).get_xlabel() == "subvalues added"
    pyplot.close("all")


def test_labels_carry_tokens_and_true_minus_signs(trace: tlsv.Trace, ax, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads a source position is called by its token; a sum below zero has a minus, no hyphen."""
    neurons = trace.ffn_neurons(None)
    label = neurons[neurons["coefficient"] < 0]["label"].iloc[0]
    table = trace.activations(label, by="head_position")
    trace.plot_activations(label, by="head_position", top=None, ax=ax)
    expected = [f"{x} {trace.str_tokens[int(x.split('@')[1])]!r}" if "@" in x else x for x in table["label"]]
    assert names(ax) == expected
    assert any("@" in name for name in expected)
    assert table["score"].sum() < 0
    assert f"−{-table['score'].sum():.2f}" in ax.get_xlabel()
    assert "-" not in ax.get_xlabel()
    object.__setattr__(trace, "str_tokens", ["$a"] * 7)
    other = trace.plot_activations(label, by="head_position", ax=pyplot.subplots()[1])
    other.figure.canvas.draw()
    assert any(r"'\$a'" in name for name in names(other))


def test_compare(trace: tlsv.Trace, ax) -> None:
    """Two bars a component in the table's order, none where it is missing; titles of both traces in the legend."""
    other = tlsv.trace(trace.model, [8, 9, 12], 6)
    for unit in ("head_position", "head"):
        ax.clear()
        trace.plot_compare(other, unit, top=40, ax=ax)
        table = trace.compare(other, unit).head(40)
        for column, bars in zip(("increase", "increase_other"), ax.containers, strict=True):
            widths = [bar.get_width() for bar in bars]
            np.testing.assert_allclose(widths, table[column])
            middles = [round(bar.get_y() + bar.get_height() / 2) for bar in bars]
            assert middles == list(range(len(table)))
        assert ax.containers[0][0].get_y() < ax.containers[1][0].get_y()
        assert ax.yaxis_inverted()
        legend = [text.get_text() for text in ax.get_legend().get_texts()]
        assert [text.split(" → ")[1] for text in legend] == ["'w5'", "'w6'"]
        for name, row in zip(names(ax), table.to_dict("records"), strict=True):
            assert name.startswith(row["label"])
            assert (repr(row["token"]) in name) if unit == "head_position" else name == row["label"]
    table = trace.compare(other, "head_position")
    shared = table[table["token_other"].notna()].iloc[0]
    trace.plot_compare(other, "head_position", top=None, ax=ax)
    assert f"{shared['label']} {shared['token']!r}/{shared['token_other']!r}" in names(ax)
    with pytest.raises(ValueError, match="top is a positive number"):
        trace.plot_compare(other, top=0)


FACTS = pd.DataFrame({"kind": ["a", "b"], "prompt": [[3, 4, 5], [6, 7]], "target": [8, 9]})


@pytest.mark.slow
@pytest.mark.parametrize("against", [None, "rest"])
def test_evaluation(against: str | None, ax) -> None:
    """A line a ranking through its means, with its intervals, over the numbers ablated, and what there was before."""
    model = zoo.model("llama")
    facts = FACTS if against is None else FACTS.assign(against=against)
    table = tlsv.evaluate(model, facts, ks=(10, 2, 5), rankings=["norm", "coefficient"])
    measure = "log_prob" if against is None else "log_prob_diff"
    assert tlsv.plot_evaluation(table, ax=ax) is ax
    *lines, before = ax.lines
    assert [line.get_label() for line in lines] == ["norm", "coefficient", "random"]
    for line, band in zip(lines, ax.collections, strict=True):
        rows = table[table["ranking"] == line.get_label()].sort_values("k")
        np.testing.assert_allclose(line.get_xydata(), rows[["k", f"{measure}_after"]])
        drawn = band.get_paths()[0].vertices[:, 1]
        assert drawn.min() == pytest.approx(rows[f"{measure}_after_low"].min())
        assert drawn.max() == pytest.approx(rows[f"{measure}_after_high"].max())
    assert before.get_ydata()[0] == pytest.approx(table[f"{measure}_before"].iloc[0])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "5", "10"]
    assert (ax.get_xlabel(), ax.get_xscale()) == ("FFN neurons ablated", "log")
    assert "(nats)" in ax.get_ylabel()
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 3
    tlsv.plot_evaluation(table, measure="mrr")
    assert pyplot.gca().get_ylabel() == "mean reciprocal rank"
    pyplot.close("all")


def test_no_picture_of_what_is_no_evaluation() -> None:
    """Other tables, other measures and several groups are refused; one group is drawn."""
    model = zoo.model("llama")
    table = tlsv.evaluate(model, FACTS, ks=(2,), rankings="norm", by="kind")
    with pytest.raises(ValueError, match=r"that tlsv\.evaluate gave"):
        tlsv.plot_evaluation(table[["ranking", "k"]])
    with pytest.raises(ValueError, match="several groups"):
        tlsv.plot_evaluation(table)
    one = table[table["kind"] == "a"]
    with pytest.raises(ValueError, match="measure is one of 'log_prob', 'prob', 'mrr', got 'log_prob_diff'"):
        tlsv.plot_evaluation(one, measure="log_prob_diff")
    assert tlsv.plot_evaluation(one).get_title() == "Targets of 1 fact, mean and 95%"
    pyplot.close("all")


def test_long_titles_are_cut() -> None:
    """A long prompt's end, and three words of many."""
    words = plots.title("x" * 50, ["a", "b", "c", "d", "e"], "rest")
    assert words == f"{'…' + 'x' * 39!r} → 'a' or 'b' or 'c' or 2 others against the rest"
