"""docs/models.md is what docs/models/*.json give; those cover the zoo, and a few families measured again agree."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
from helpers import zoo

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))

import make_models
import models_page

RELEASE = importlib.metadata.version("transformer_lens")
ERRORS = ("sums", "readout", "scores")
EPS = 1.2e-7  # float32's: how far an error is below it is luck


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, dict]]:
    """Group -> family -> what `make models` wrote down for the running release."""
    path = models_page.FOLDER / f"{RELEASE}.json"
    if not path.exists():
        pytest.skip(f"docs/models has no measurements of TransformerLens {RELEASE}; `make models` makes them")
    return json.loads(path.read_text(encoding="utf-8"))["groups"]


@pytest.mark.any_release
def test_the_page_is_what_the_measurements_give() -> None:
    """Put together again it is the same text, with a row for every family."""
    page = models_page.page()
    assert models_page.PAGE.read_text(encoding="utf-8") == page
    for of in models_page.measurements().values():
        for members in of["groups"].values():
            assert all(f"\n| {name} (`{case['model']}`) |" in page for name, case in members.items())


def test_every_family_is_measured_in_every_mode(measured) -> None:
    """No more and no fewer than the tests have."""
    families = make_models.families()
    assert {group: set(members) for group, members in families.items()} == {g: set(m) for g, m in measured.items()}
    for group, members in measured.items():
        for case in members.values():
            assert set(case) == {"model", *make_models.modes(group)}


@pytest.mark.any_release
def test_what_must_convert_on_release_2_is_what_did() -> None:
    """The tests fail, and do not skip, where one of these stops converting. (Mixtral does so in float32 alone.)"""
    exact = {
        name
        for members in models_page.measurements()["2.18.0"]["groups"].values()
        for name, case in members.items()
        if case.get("from a folder", {}).get("status") == "exact"
    }
    assert exact == zoo.CONVERTED | {"mixtral"}


@pytest.mark.any_release
def test_whatever_is_decomposed_is_exact() -> None:
    """On every release: nothing is off, and what is not exact says why."""
    for of in models_page.measurements().values():
        for members in of["groups"].values():
            for mode, case in ((m, c) for member in members.values() for m, c in member.items() if m != "model"):
                assert case["status"] in ("exact", "refused", "host fails", "not converted"), mode
                assert ("sums" in case and "readout" in case) if case["status"] == "exact" else case["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "family"),
    [
        ("dense", "gemma2"),
        ("mixtures", "deepseek_v3"),
        ("hybrids", "qwen3_next"),
        ("refused", "mamba"),
        ("hooked", "ln_gelu"),
        ("hooked", "mixture_of_experts"),
    ],
)
def test_measuring_again_gives_the_same(measured, group, family, tokens) -> None:
    """The same status, reasons and refused parts, and errors within a factor of ten."""
    if group not in measured:
        pytest.skip(f"TransformerLens {RELEASE} has no class for this")
    _, boot = make_models.families()[group][family]
    for mode, compatibility in make_models.modes(group).items():
        found, expected = make_models.measure(boot, compatibility, tokens), measured[group][family][mode]
        assert set(found) == set(expected)
        for key, value in expected.items():
            if key in ERRORS:
                assert 0.1 <= max(found[key], EPS) / max(value, EPS) <= 10
            else:
                assert found[key] == value
