"""Real models against Hugging Face's own, and against brute force: `make test-models`, no part of `make test`.

SmolLM2-135M is fetched where it is not there; Gemma 3 270M takes part once `demos/gemma_3_270m.py` has fetched it.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from helpers.brute_force import BruteForce
from helpers.demos import demo

import tl_subvalues as tlsv
from tl_subvalues.loading.embedded import embedded_folder
from tl_subvalues.loading.ggufs import gguf_folder

PROMPTS = {
    "The capital of France is": " Paris",
    "The Eiffel Tower is located in the city of": " Paris",
    "The opposite of hot is": " cold",
    "Monday, Tuesday,": " Wednesday",
}
# Nats; 2e-5 and 9e-5 are the most that was seen (probabilities over 262,144 words add up to 1 within 8e-5).
TOLERANCE = 3e-4


class Loaded(NamedTuple):
    family: str
    folder: Path
    model: Any


@functools.cache
def load(name: str) -> Loaded:
    """A model by its name here, loaded once."""
    if name == "smollm2":
        return Loaded("llama", embedded_folder(), tlsv.load_model(device="cpu"))
    file = demo("gemma_3_270m.py").default_file()
    if not file.is_file():
        pytest.skip(f"{file} is not there: python demos/gemma_3_270m.py fetches it")
    return Loaded("gemma3", gguf_folder(file), tlsv.load_model(str(file), device="cpu"))


@pytest.fixture(params=["smollm2", "gemma3"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return load(request.param)


def test_log_probabilities_are_hugging_face_s(loaded: Loaded) -> None:
    """All words', and the words' ids and BOS those of the tokenizer."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(loaded.folder)
    for prompt, target in PROMPTS.items():
        trace = tlsv.trace(loaded.model, prompt, target)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert trace.tokens.tolist() == ([tokenizer.bos_token_id, *ids] if loaded.family == "gemma3" else ids)
        with torch.no_grad():
            theirs = hf(trace.tokens[None]).logits[0, -1].double().log_softmax(-1)
            ours = loaded.model(trace.tokens[None])[0, -1].double().log_softmax(-1)
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
        assert trace.log_prob == pytest.approx(theirs[trace.target_id].item(), abs=TOLERANCE)


def test_sublayers_heads_and_top_neurons_by_brute_force(loaded: Loaded) -> None:
    """Every sublayer, head and head at a source position, and the top neurons, from first principles."""
    prompt = "The Eiffel Tower is located in the city of"
    trace = tlsv.trace(loaded.model, prompt, " Paris")
    expected = BruteForce(loaded.model, loaded.family, trace.tokens[None])
    tables = {"sublayer": trace.layers(), "head": trace.heads(), "head_position": trace.head_positions(top=None)}
    for unit, table in tables.items():
        found = expected.increases(unit, trace.position, trace.target_id, "frozen")
        assert set(table["label"]) == found.keys()
        for row in table.itertuples():
            assert row.log_prob_increase == pytest.approx(found[row.label][0], abs=TOLERANCE), row.label
            assert row.prob_increase == pytest.approx(found[row.label][1], abs=TOLERANCE), row.label
    neurons = {("ffn_neuron", "mlp"): trace.ffn_neurons(top=30), ("attn_neuron", "attn"): trace.attn_neurons(top=30)}
    for (unit, sublayer), table in neurons.items():
        for layer, rows in table.groupby("layer"):
            x, parts = expected.residual(layer, sublayer, trace.position), expected.parts(unit, layer, trace.position)
            vectors = torch.stack([parts[label] for label in rows["label"]])
            found = expected.log_probs(torch.cat([x[None], x + vectors]), trace.position, "frozen")[:, trace.target_id]
            assert rows["log_prob_increase"].tolist() == pytest.approx((found[1:] - found[0]).tolist(), abs=TOLERANCE)


def test_the_search_finds_what_a_sweep_finds() -> None:
    """The exact top 50 of SmolLM2's FFN neurons (a sweep over Gemma's takes minutes)."""
    trace = tlsv.trace(load("smollm2").model, "The capital of France is", " Paris")
    found, swept = trace.ffn_neurons(top=50), trace.ffn_neurons(top=None).head(50)
    assert found["log_prob_increase"].tolist() == pytest.approx(swept["log_prob_increase"].tolist(), abs=TOLERANCE)
    assert found.attrs["certificate"]["evaluated"] < 2000


def test_the_eiffel_tower() -> None:
    """What was seen on Gemma 3 270M: where its answer comes from, and what those parts write."""
    trace = tlsv.trace(load("gemma3").model, "The Eiffel Tower is located in the city of", " Paris")
    assert (trace.rank, trace.str_tokens[0]) == (1, "<bos>")
    assert trace.log_prob == pytest.approx(-0.275, abs=1e-3)
    best = trace.head_positions(top=1).iloc[0]
    assert (best["label"], best["token"]) == ("L12H2@2", " Eiffel")
    assert best["log_prob_increase"] == pytest.approx(5.64, abs=0.01)
    words = trace.vocabulary("L12H2", 3)
    assert words.loc[words["side"] == "top", "token"].tolist() == [" Eiffel", " Parisian", " Paris"]
    neuron = trace.ffn_neurons(top=1).iloc[0]
    assert neuron["label"] == "L11N441"
    assert neuron["log_prob_increase"] == pytest.approx(1.27, abs=0.01)
