"""What a user is warned of, by categories that can be told apart, and that nothing hides them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import zoo
from helpers.spoken import PROMPT, said, spoken

import tl_subvalues as tlsv
from tl_subvalues.model_view import faults

pytestmark = pytest.mark.any_release

ROOT = Path(__file__).parents[1]


def test_a_missing_space_is_said(tmp_path: Path) -> None:
    """Where the word with a space is far likelier: by a trace, a batch, for one word and for each of several."""
    model = spoken(zoo.model("llama"), " ab", "ab", tmp_path)
    p = float(tlsv.trace(model, PROMPT).prob)
    for call in (
        lambda: tlsv.trace(model, PROMPT, "ab"),
        lambda: tlsv.trace(model, PROMPT, ["<3>", "ab"]),
        lambda: tlsv.trace(model, PROMPT, "ab", against="rest"),
        lambda: tlsv.trace(model, PROMPT, "ab", scale="recomputed"),
        lambda: tlsv.trace_batch(model, [PROMPT, [3]], ["ab", 4]),
        lambda: tlsv.trace(model, PROMPT, "ab", cache=model.run_with_cache(torch.tensor([PROMPT]))[1]),
    ):
        (sentence,) = said(call, tlsv.LeadingSpaceWarning)
        assert sentence.startswith("the target 'ab' has no leading space, and ' ab' is far likelier here")
        assert f"p = {p:.2g}, not " in sentence


def test_a_space_that_is_not_missing(tmp_path: Path) -> None:
    """Nothing is said of a word with its space, of an id, of a word as likely without, of what is traced anyway."""
    model = spoken(zoo.model("llama"), " ab", "ab", tmp_path / "a")
    unspaced = int(model.to_tokens("ab", prepend_bos=False)[0, 0])
    for target in (" ab", unspaced, None, "<3>", ["ab", " ab"]):
        assert said(lambda target=target: tlsv.trace(model, PROMPT, target), tlsv.LeadingSpaceWarning) == []
    model = spoken(zoo.model("llama"), "ab", " ab", tmp_path / "b")
    assert said(lambda: tlsv.trace(model, PROMPT, "ab"), tlsv.LeadingSpaceWarning) == []


@pytest.mark.slow
@pytest.mark.real_model
def test_a_prompt_that_ends_with_the_space() -> None:
    """Where the target has one too; not for a target without, nor in the middle of a prompt."""
    model = tlsv.load_model(device="cpu")

    def sentences(prompt: str, target: str, **more: Any) -> list[str]:
        return said(lambda: tlsv.trace(model, prompt, target, **more), tlsv.LeadingSpaceWarning)

    (sentence,) = sentences("The capital of France is ", " Paris")
    assert sentence.startswith("the prompt ends with a space, and the target ' Paris' begins with one")
    assert sentences("The capital of France is", " Paris") == []
    assert sentences("The capital of France is ", " Paris", position=-2) == []


def test_another_model_has_its_category(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning that TransformerLens computes another model can be told from all others."""
    fault = faults.Fault("LlamaForCausalLM", 2.0, ((4, 3),))
    monkeypatch.setattr(faults, "FAULTS", (fault,))
    monkeypatch.setattr(faults, "installed_release", lambda: (4, 3))
    monkeypatch.setattr(faults, "is_bridge", lambda model: True)
    model = zoo.model("llama")
    model.cfg.architecture = "LlamaForCausalLM"
    (sentence,) = said(lambda: tlsv.trace(model, PROMPT, 5), tlsv.OtherModelWarning)
    assert "2 nats apart" in sentence
    for kind in (tlsv.OtherModelWarning, tlsv.LeadingSpaceWarning, tlsv.UnknownWordsWarning):
        assert issubclass(kind, tlsv.SubvaluesWarning)
        assert issubclass(tlsv.SubvaluesWarning, UserWarning)


def test_notebooks_hide_nothing_of_it() -> None:
    """A filter in a notebook or a demo names whose warnings it hides."""
    for path in (ROOT / "demos").iterdir():
        if path.suffix not in (".ipynb", ".py"):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        for call in re.findall(r"(?:filterwarnings|simplefilter)\((.*)\)", text):
            assert "category=TqdmWarning" in call, f"{path.name}: {call}"
