"""Where TransformerLens computes another model than Hugging Face, as docs/models.md has it, a trace says so."""

import contextlib
import importlib.metadata
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view import faults
from tl_subvalues.model_view.releases import model_name

MODELS = Path(__file__).parents[1] / "docs" / "models"
MEASURED = {
    file.stem: {
        name: case for members in json.loads(file.read_text())["groups"].values() for name, case in members.items()
    }
    for file in MODELS.glob("*.json")
}
RELEASE = importlib.metadata.version("transformer_lens")
MODES = {False: "raw", True: "compatibility mode"}


def off(case: dict[str, Any]) -> list[float]:
    return [of["off_hugging_face"] for of in case.values() if isinstance(of, dict) and "off_hugging_face" in of]


OFF = {name: case["model"] for members in MEASURED.values() for name, case in members.items() if off(case)}


def warned(model: Any, tokens: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tlsv.trace(model, tokens, 17)
    return [str(warning.message) for warning in caught if "another model" in str(warning.message)]


@pytest.mark.slow
@pytest.mark.parametrize("compatibility", list(MODES), ids=MODES.values())
@pytest.mark.parametrize("family", sorted({*OFF, "llama", "falcon_alibi", "deepseek_v3"}))
def test_what_was_measured_off_is_warned_of_and_nothing_else(family, compatibility, tokens):
    """Once, by the model's name, as far off as the page says."""
    zoo.bridge_class()  # or skipped
    if RELEASE not in MEASURED:
        pytest.skip(f"TransformerLens {RELEASE} was not measured")
    case = MEASURED[RELEASE][family][MODES[compatibility]]
    try:
        model = zoo.bridge(family, compatibility=compatibility)
    except (AssertionError, RuntimeError):
        assert case["status"] == "host fails"
        return
    said = warned(model, tokens)
    assert len(said) == ("off_hugging_face" in case)
    if said:
        assert said[0].startswith(model_name(model))
        assert f"{case['off_hugging_face']:g} nats apart" in said[0] or family == "gpt_oss"


def test_faults_are_those_of_the_page():
    """Architecture, size, releases and modes, each as it was measured; GPT-OSS's sinks have a warning of their own."""
    listed = {fault.architecture: fault for fault in faults.FAULTS}
    assert set(listed) == set(OFF.values()) - {"GptOssForCausalLM"}
    for family, architecture in OFF.items():
        if fault := listed.get(architecture):
            seen = {release: case[family] for release, case in MEASURED.items() if off(case.get(family, {}))}
            assert sorted(seen) == [f"{major}.{minor}.0" for major, minor in fault.seen]
            assert {nats for case in seen.values() for nats in off(case)} == {fault.nats}
            assert fault.processed == all("off_hugging_face" not in case["raw"] for case in seen.values())


WAYS_OUT = {
    "BitNetForCausalLM": "boot it anew and use it raw",
    "Glm4MoeForCausalLM": "boot it anew and use it raw, or call enable_compatibility_mode(fold_ln=False)",
    "CohereForCausalLM": "use TransformerLens 4.3, where they agree",
    "FalconForCausalLM": "compare its log-probabilities with Hugging Face's before you rely on it",
}


@pytest.mark.parametrize("architecture", WAYS_OUT)
def test_the_way_out_is_named(architecture):
    """Another mode, another setting, another release, or a comparison."""
    assert {f.architecture: f.way_out for f in faults.FAULTS}[architecture] == WAYS_OUT[architecture]


def test_unfolded_norms_are_no_fault(tokens):
    """In compatibility mode without folding, as the warning advises, the model is Hugging Face's again."""
    model = zoo.bridge("glm4_moe")
    with contextlib.redirect_stdout(None):
        model.enable_compatibility_mode(fold_ln=False)
    assert not warned(model, tokens)
    with torch.no_grad():
        ours, theirs = model(tokens).log_softmax(-1), zoo.hf_model("glm4_moe")(tokens).logits.log_softmax(-1)
    assert float((ours - theirs).abs().max()) < 1e-4


def test_a_later_release_and_an_unknown_one_are_silent(tokens, monkeypatch):
    """A fault is only claimed up to the last release that it was seen in."""
    model, version = zoo.bridge("cohere"), importlib.metadata.version
    for installed, count in (("3.9.0", 1), ("4.0.0", 0), ("4.3.0", 0), ("9.0.0", 0), ("unknown", 0)):
        told = {"transformer_lens": installed}
        monkeypatch.setattr(importlib.metadata, "version", lambda name, told=told: told.get(name) or version(name))
        assert len(warned(model, tokens)) == count, installed
