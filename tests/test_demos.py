"""The scripts behind docs/evaluation.md, on a tiny model: they compare what the page's tables compare."""

import runpy
from pathlib import Path

import pandas as pd
import pytest
from helpers import zoo
from helpers.facts import make_facts

pytestmark = pytest.mark.any_release

DEMOS = Path(__file__).parents[1] / "demos"


@pytest.mark.slow
def test_the_scripts_rankings_are_the_tables(tmp_path: Path) -> None:
    """By name and number, in the tables that are kept; layers are counted of each."""
    script = runpy.run_path(str(DEMOS / "evaluate_facts.py"))
    model, facts = zoo.model("llama"), make_facts(2)
    kept = pd.read_csv(DEMOS / "data" / "evaluation_by_fact.csv")
    table = script["by_fact"](model, facts, str(tmp_path / "record.jsonl"))
    assert list(table["ranking"].drop_duplicates()) == list(kept["ranking"].drop_duplicates())
    layers = script["layer_shares"](model, facts)
    assert list(layers.index) == list(pd.read_csv(DEMOS / "data" / "evaluation_layers.csv")["ranking"])
    assert layers.sum(axis=1).tolist() == pytest.approx([1.0] * len(layers))
