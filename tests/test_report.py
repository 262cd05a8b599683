"""What a terminal shows is what the report holds."""

import copy
import json

import pytest
import torch
from helpers import zoo
from rich.console import Console

import tl_subvalues as tlsv
from tl_subvalues.command import report, screen

pytestmark = pytest.mark.any_release


@pytest.fixture(scope="module")
def made(tokens: torch.Tensor) -> report.Report:
    return report.make_report(tlsv.trace(zoo.model("llama"), tokens, 5), model="tiny", top=4)


def test_a_terminal_shows_all_rows(made: report.Report) -> None:
    """Every label and number of every table, and the headline's totals."""
    shown = screen.render(made, Console(width=200))
    assert list(made.tables)[-2:] == ["activations", "query_ffn_neurons"]
    for table in made.tables.values():
        (column,) = {"log_prob_increase", "score", "query_score"} & set(table)
        for label, number in zip(table["label"], table[column], strict=True):
            assert label in shown
            assert f"{number:+.3f}" in shown
    assert f"{made.attn_total:+.2f} nats" in shown
    assert "'w5'" in shown


def test_what_switched_the_first_neuron_on(tokens: torch.Tensor, made: report.Report) -> None:
    """The activations are those of the first FFN neuron, with its share of the coefficient; query neurons likewise."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    first = trace.ffn_neurons(1).iloc[0]
    expected = trace.activations(first["label"], by="head_position").head(4)
    shown = made.tables["activations"]
    assert shown["label"].tolist() == expected["label"].tolist()
    assert shown["share"].to_numpy() == pytest.approx((expected["score"] / first["coefficient"]).to_numpy(), rel=1e-4)
    read = [trace.str_tokens[int(x.split("@")[1])] if "@" in x else "" for x in shown["label"]]
    assert shown["token"].tolist() == read
    assert first["label"] in screen.render(made, Console(width=200))
    query = made.tables["query_ffn_neurons"]
    assert query["label"].tolist() == trace.query_ffn_neurons(trace.ffn_neurons(300), top=4)["label"].tolist()
    coefficients = trace.ffn_neurons(None).set_index("label")["coefficient"]
    assert query["coefficient"].tolist() == pytest.approx(coefficients[query["label"]].tolist())


def test_both_readings_are_shown_and_told_apart(tokens: torch.Tensor, made: report.Report) -> None:
    """What each row raises here stands below what it writes, in text beside it, in JSON as `raises`."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    data, narrow = json.loads(report.to_json(made)), screen.render(made, Console(width=80))
    assert max(map(len, narrow.splitlines())) <= 80
    assert "writes (cosine), + raises here" in " ".join(narrow.split())
    text = screen.to_text(made)
    for name in ("layers", "heads", "head_positions", "ffn_neurons", "attn_neurons", "query_ffn_neurons"):
        for row in data[name]["rows"]:
            for reading, by in (("writes", "cosine"), ("raises", "prob_increase")):
                assert row[reading] == trace.writes(row["label"], 5, by=by)["token"].tolist(), (row["label"], by)
            assert " ".join(map(repr, row["raises"])) in text
            assert "+ " + " ".join(map(repr, row["raises"][:2])) in narrow
    assert any(row["writes"] != row["raises"] for row in data["ffn_neurons"]["rows"])


def test_what_adds_nothing_raises_nothing(tokens: torch.Tensor) -> None:
    """A neuron whose row is zero has empty lists, and the screen goes on."""
    model = zoo.bridge("llama")
    with torch.no_grad():
        for layer in model.original_model.model.layers:
            layer.mlp.down_proj.weight[:, 1:] = 0.0
    made = report.make_report(tlsv.trace(model, tokens, 5), model="tiny", top=4)
    assert sum(words == [] for words in made.tables["ffn_neurons"]["raises"]) >= 2
    assert "FFN neurons" in screen.render(made, Console(width=80))


def test_the_json_says_what_scores_are_of(made: report.Report) -> None:
    """Whose activations they are, what they add up to, which value neurons were left out."""
    data = json.loads(report.to_json(made))
    assert data["activations"]["neuron"] == made.tables["ffn_neurons"]["label"].iloc[0]
    assert data["activations"]["sums_to"] == "coefficient"
    assert data["query_ffn_neurons"]["left_out"] == []


@pytest.mark.hooked
def test_a_model_without_ffn(tokens: torch.Tensor) -> None:
    """An attention-only model has no FFN tables, and the report says so."""
    made = report.make_report(tlsv.trace(zoo.hooked("attn_only"), tokens, 5), model="tiny", top=4)
    assert "ffn_neurons" not in made.tables
    assert made.notes == ["No FFN neurons: the model has none."]
    assert "No FFN neurons" in screen.to_text(made)


def test_why_a_table_is_missing(tokens: torch.Tensor) -> None:
    """Where activation scores are refused, as of a run whose gates were edited, the report has the rest and why."""
    model = zoo.model("llama")
    with model.hooks(fwd_hooks=[(f"blocks.{i}.mlp.hook_pre", lambda value, hook: value + 1.0) for i in (0, 1)]):
        _, cache = model.run_with_cache(tokens)
    made = report.make_report(tlsv.trace(model, tokens, 5, cache=cache), model="tiny", top=4)
    assert set(made.tables) == {"layers", "heads", "head_positions", "ffn_neurons", "attn_neurons"}
    note, effects = made.notes
    assert "subkeys do not give its FFN coefficients" in note
    assert "No total effects" in effects
    shown = screen.render(made, Console(width=1000))
    for text in (screen.to_text(made), report.to_json(made), shown):
        assert "subkeys do not give its FFN coefficients" in text


def test_markup_in_tokens_is_text(made: report.Report) -> None:
    """A token that looks like rich's markup is printed, not obeyed."""
    odd = copy.deepcopy(made)
    odd.tables["heads"]["writes"].iloc[0][0] = "[red]x[/red]"
    assert "[red]x[/red]" in screen.render(odd, Console(width=200))


def test_totals_are_sums_of_sublayers(tokens: torch.Tensor, made: report.Report) -> None:
    """The headline adds up all sublayers, not only those that are shown."""
    layers = tlsv.trace(zoo.model("llama"), tokens, 5).layers()
    expected = layers.groupby("sublayer")["log_prob_increase"].sum()
    assert made.attn_total == pytest.approx(expected["attn"], abs=1e-5)
    assert made.ffn_total == pytest.approx(expected["mlp"], abs=1e-5)


def test_a_vocabulary_smaller_than_the_columns(tokens: torch.Tensor) -> None:
    """Words beside each row are its own, also where the vocabulary has fewer than are asked for."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    both = trace.vocabulary(["L0N1", "L1H2"], 1000)
    assert both.groupby("label").size().tolist() == [2 * zoo.VOCAB, 2 * zoo.VOCAB]
