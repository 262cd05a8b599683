"""The page on readings says what its file says."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.any_release

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_s_table_is_the_file_s() -> None:
    """Every row, made again from the lines of the parts."""
    spec = importlib.util.spec_from_file_location("make_reading_words", DOCS / "make_reading_words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "reading-words.md").read_text(encoding="utf-8")
    table = module.summary(pd.read_csv(DOCS / "reading-words.csv"))
    assert len(table) == 12
    names = {"ffn_neuron": "FFN neurons", "head_position": "heads at a source"}
    for row in table.itertuples():
        line = (
            f"| {row.model} | {names[row.unit]} | {row.by} | {row.per_cent} | {row.parts_with_three} of {row.parts} | "
        )
        assert f"{line}{row.different} |" in page


def test_the_rule() -> None:
    """Its lists, stems of four letters both ways, and small words that do not count."""
    spec = importlib.util.spec_from_file_location("make_reading_words", DOCS / "make_reading_words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rule = module.Rule("capital", "The capital of France is", " Paris")
    assert all(map(rule.holds, [" Paris", "Parisian", " capitals", " Fran", " city"]))
    assert not any(map(rule.holds, [" the", " of", " noqa", " par", ""]))
