"""Where TransformerLens computes another model than Hugging Face, as docs/models.md has it, a trace says so."""

import contextlib
import importlib.metadata
import json
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import test_more_families
import zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view import faults, host

MODELS = Path(__file__).parents[1] / "docs" / "models"
MEASURED = json.loads((MODELS / f"{importlib.metadata.version('transformer_lens')}.json").read_text())["groups"]
FURTHER = {**test_more_families.EXACT, **test_more_families.HEADS_ONLY}
# What is off on some release, and one of each kind that never was.
FAMILIES = sorted(
    {
        name
        for file in MODELS.glob("*.json")
        for members in json.loads(file.read_text())["groups"].values()
        for name, case in members.items()
        if any("off_hugging_face" in of for of in case.values() if isinstance(of, dict))
    }
    | {"llama", "falcon_alibi", "deepseek_v3"}
)
MODES = {False: "raw", True: "compatibility mode"}


def warned(model: Any, tokens: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tlsv.trace(model, tokens, 17)
    return [str(warning.message) for warning in caught if "another model" in str(warning.message)]


@pytest.mark.parametrize("compatibility", list(MODES), ids=MODES.values())
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_measured_off_is_warned_of_and_nothing_else(family, compatibility, tokens):
    """Once, naming the model and, where there is one, the way out."""
    zoo.bridge_class()  # or skipped
    case = next(members[family] for members in MEASURED.values() if family in members).get(MODES[compatibility], {})
    with mock.patch.dict(zoo.REFUSED, {family: FURTHER[family]} if family in FURTHER else {}):
        try:
            model = zoo.bridge(family, compatibility=compatibility)
        except (AssertionError, RuntimeError):
            assert case["status"] == "host fails"
            return
    said = warned(model, tokens)
    assert len(said) == ("off_hugging_face" in case)
    if said:
        assert said[0].startswith(host.model_name(model))
        assert "raw" in said[0] or not compatibility or "use TransformerLens" in said[0] or "compare" in said[0]


def test_a_mended_release_and_an_unknown_one_are_silent(tokens):
    """A fault is only claimed of releases that it was seen in."""
    model = zoo.bridge("cohere")
    for installed, count in (((3, 9), 1), ((4, 3), 0), ((9, 0), 0), (None, 0)):
        with mock.patch.object(host, "release", return_value=installed):
            assert len(warned(model, tokens)) == count
    with mock.patch.object(host, "release", return_value=(3, 9)), contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(faults, "FAULTS", ()))
        assert not warned(model, tokens)
