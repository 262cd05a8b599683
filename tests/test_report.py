"""What a terminal shows is what the report holds."""

import pytest
import torch
import zoo
from rich.console import Console

import tl_subvalues as tlsv
from tl_subvalues import report


@pytest.fixture
def made(tokens: torch.Tensor) -> report.Report:
    return report.make_report(tlsv.trace(zoo.bridge("llama"), tokens, 5), model="tiny", top=4)


def test_a_terminal_shows_all_rows(made: report.Report) -> None:
    """Every label and increase of every table, and the headline's totals."""
    shown = report.render(made, Console(width=200))
    for table in made.tables.values():
        for label, increase in zip(table["label"], table["log_prob_increase"], strict=True):
            assert label in shown
            assert f"{increase:+.3f}" in shown
    assert f"{made.attn_total:+.2f} nats" in shown
    assert "'w5'" in shown


def test_markup_in_tokens_is_text(made: report.Report) -> None:
    """A token that looks like rich's markup is printed, not obeyed."""
    made.tables["heads"]["promotes"].iloc[0][0]["token"] = "[red]x[/red]"
    assert "[red]x[/red]" in report.render(made, Console(width=200))


def test_totals_are_sums_of_sublayers(tokens: torch.Tensor, made: report.Report) -> None:
    """The headline adds up all sublayers, not only those that are shown."""
    layers = tlsv.trace(zoo.bridge("llama"), tokens, 5).layers()
    expected = layers.groupby("sublayer")["log_prob_increase"].sum()
    assert made.attn_total == pytest.approx(expected["attn"], abs=1e-5)
    assert made.ffn_total == pytest.approx(expected["mlp"], abs=1e-5)


def test_a_vocabulary_smaller_than_the_columns(tokens: torch.Tensor) -> None:
    """Words beside each row are its own, also where the vocabulary has fewer than are asked for."""
    trace = tlsv.trace(zoo.bridge("llama"), tokens, 5)
    both = trace.vocabulary(["L0N1", "L1H2"], 1000)
    assert both.groupby("label").size().tolist() == [2 * zoo.VOCAB, 2 * zoo.VOCAB]
