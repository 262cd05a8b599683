"""The trained Baevski & Auli model of demos/: it loads in both forms, knows what it was taught, and can be traced."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.demos import DEMOS, demo

import tl_subvalues as tlsv

pytestmark = [pytest.mark.bridge, pytest.mark.any_release]
TAUGHT = DEMOS / "taught"


@pytest.fixture(scope="module")
def model() -> Any:
    return tlsv.baevski18.load(TAUGHT / "model.pt", TAUGHT / "dict.txt", device="cpu")


@pytest.fixture(scope="module")
def facts() -> pd.DataFrame:
    return pd.read_csv(TAUGHT / "facts.csv")


def log_probs(model: Any, facts: pd.DataFrame) -> list[float]:
    """Of each target after its prompt, prompts of one length in one batch."""
    found = pd.Series(0.0, index=facts.index)
    prompts = [model.to_tokens(prompt)[0] for prompt in facts["prompt"]]
    lengths = pd.Series([len(prompt) for prompt in prompts], index=facts.index)
    for _, rows in facts.groupby(lengths):
        with torch.no_grad():
            logits = model(torch.stack([prompts[i] for i in rows.index]))[:, -1]
        found[rows.index] = [
            float(row[model.to_single_token(t)]) for row, t in zip(logits, rows["target"], strict=True)
        ]
    return found.tolist()


@pytest.mark.slow
@pytest.mark.each_release
@pytest.mark.parametrize("form", ["fairseq", "converted", "by name"])
def test_it_answers_in_every_form(form: str, model: Any, facts: pd.DataFrame) -> None:
    """All 1,590 prompts, as the script found them when it had trained it."""
    if form == "converted":
        model = tlsv.baevski18.load(TAUGHT / "converted", device="cpu")
    elif form == "by name":
        model = tlsv.load_model(f"baevski18:{TAUGHT}", device="cpu")
    assert len(facts) == 1590
    assert log_probs(model, facts) == pytest.approx(facts["log_prob"].tolist(), abs=1e-3)


def test_what_it_was_taught(facts: pd.DataFrame) -> None:
    """It answers in words that it was not taught too, and there are answers in each band."""
    assert facts["answered"].mean() > 0.99
    assert facts[~facts["taught"]].groupby("kind")["answered"].mean().min() > 0.9
    assert (facts["taught"] == demo("train_baevski18.py").sentences()["taught"]).all()
    assert set(facts.loc[facts["answered"], "band"]) == {0, 1, 2}
    assert facts.groupby("kind")["band"].unique().map(len)["currency"] == 3


@pytest.mark.parametrize("band", [0, 1, 2])
def test_it_is_traced(band: int, model: Any, facts: pd.DataFrame) -> None:
    """Where an answer of each band comes from; the sums are checked by the trace itself."""
    row = facts[facts["band"] == band].iloc[5]
    trace = tlsv.trace(model, row["prompt"], row["target"])
    assert trace.log_prob == pytest.approx(row["log_prob"], abs=1e-3)
    assert trace.str_tokens[0] == "</s>"
    neurons = trace.ffn_neurons(top=5)
    assert neurons.attrs["certificate"]["method"] == "bound"
    assert trace.ffn_neurons(top=None)["log_prob_increase"].head().tolist() == pytest.approx(
        neurons["log_prob_increase"].tolist(), abs=1e-5
    )
    assert trace.ablate(trace.ffn_neurons(top=300))["log_prob_after"] < trace.log_prob


@pytest.mark.parametrize("layer", [1, 3])
def test_what_switches_a_neuron_on(layer: int, model: Any) -> None:
    """Its scores add up to its pre-activation, as the module computes it; a ReLU's effects add up to the score."""
    trace = tlsv.trace(model, "The capital of France is", "Paris")
    with torch.no_grad():
        _, cache = model.run_with_cache(trace.tokens[None])
        block = model.original_model.layers[layer]
        residual = cache[f"blocks.{layer}.hook_resid_pre"] + cache[f"blocks.{layer}.hook_attn_out"]
        pre = block.mlp.fc1(block.final_layer_norm(residual))[0, -1]
    neuron = int(pre.argmax())
    for by in ("sublayer", "head_position", "ffn_neuron"):
        scores = trace.activations(f"L{layer}N{neuron}", by=by)["score"]
        assert scores.sum() == pytest.approx(float(pre[neuron]), abs=1e-4)
    effects = trace.effects("embedding", rule="frozen", top=None)
    assert effects["total_effect"].sum() == pytest.approx(effects.attrs["score"], abs=1e-3)
    assert len(trace.query_ffn_neurons(trace.ffn_neurons(top=20), top=5)) == 5


def test_the_script_trains_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch over a few countries: what is saved loads as what was trained, and a folder is not written over."""
    script = demo("train_baevski18.py")
    few = pd.read_csv(script.DATA / "countries.csv").head(6)
    (tmp_path / "data").mkdir()
    few.to_csv(tmp_path / "data" / "countries.csv", index=False)
    monkeypatch.setattr(script, "DATA", tmp_path / "data")
    monkeypatch.setattr(script, "SIZES", {**script.SIZES, "n_layers": 2})
    facts = script.main(tmp_path / "out", epochs=2)
    assert len(facts) == 90
    model = tlsv.load_model(f"baevski18:{tmp_path / 'out'}", device="cpu")
    assert log_probs(model, facts) == pytest.approx(facts["log_prob"].tolist(), abs=1e-3)
    with pytest.raises(SystemExit, match="is there already"):
        script.main(tmp_path / "out")
