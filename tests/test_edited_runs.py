"""Runs in which a hook acted: what it touched is refused by name, and what it did not touch is not."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import further_families, zoo
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.model_view import view_of


def edited_head(value: Tensor, hook: Any) -> Tensor:
    """One head's z with another's in its place."""
    value = value.clone()
    value[:, :, 1] = value[:, :, 2] + 1.0
    return value


def traced(model: Any, tokens: Tensor, hooks: list[tuple[str, Any]]) -> tlsv.Trace:
    with model.hooks(fwd_hooks=hooks):
        return tlsv.trace(model, tokens, 5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_patched_head_costs_its_own_layer_s_source_positions(family: str, tokens: Tensor) -> None:
    """The layer is named in a warning and in attrs; the other's rows are complete, and brute sums of its z."""
    model = zoo.model(family)
    trace = traced(model, tokens, [("blocks.0.attn.hook_z", edited_head)])
    assert len(trace.heads()) == 8
    for table in (trace.head_positions, trace.attn_neurons):
        with pytest.warns(tlsv.SubvaluesWarning, match=r"layer 0's values.*The other layers are listed"):
            found = table(None)
        assert found.attrs["left_out_layers"] == [0]
        assert set(found["layer"]) == {1}
        heads = 4 * tokens.shape[-1]
        assert len(found) == (heads if "dim" not in found else heads * 8)
    with pytest.raises(tlsv.UnsupportedModelError, match="layer 0's values"):
        trace.vocabulary("L0H1@1")
    both = traced(model, tokens, [(f"blocks.{i}.attn.hook_z", edited_head) for i in (0, 1)])
    with pytest.raises(tlsv.UnsupportedModelError, match=r"The same holds for layers 1"):
        both.head_positions()


def test_nothing_is_left_out_of_a_run_as_it_is(tokens: Tensor) -> None:
    """No warning and no entry in attrs where nothing was edited."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "left_out_layers" not in trace.head_positions().attrs


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_neurons_beside_ablated_ones(family: str, tokens: Tensor) -> None:
    """Activation scores of untouched FFN neurons add up to their coefficients; the ablated one's are refused."""
    model = zoo.model(family)
    ablated, other = "L1N3", "L1N4"
    before = tlsv.trace(model, tokens, 5).activations(other)
    trace = traced(model, tokens, tlsv.ablation_hooks(model, ablated))
    after = trace.activations(other)
    assert after["score"].tolist() == pytest.approx(before["score"].tolist(), abs=1e-4)
    with pytest.raises(tlsv.UnsupportedModelError, match="subkeys do not give its FFN coefficients"):
        trace.activations(ablated)


def test_attention_neurons_beside_an_edited_value(tokens: Tensor) -> None:
    """The same of one index of one head's values, edited where it is read."""
    model = zoo.model("gpt2")

    def edit(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, 1, 2, 3] += 5.0
        return value

    before = tlsv.trace(model, tokens, 5).activations("L1H2D4@1")
    trace = traced(model, tokens, [("blocks.1.attn.hook_v", edit)])
    assert trace.activations("L1H2D4@1")["score"].tolist() == pytest.approx(before["score"].tolist(), abs=1e-4)
    with pytest.raises(tlsv.UnsupportedModelError, match="value weights do not give its values"):
        trace.activations("L1H2D3@1")


@pytest.mark.bridge
@pytest.mark.parametrize(("family", "label"), [("lfm2", "0_conv_out"), ("jamba", "0_mixer_out")])
def test_a_mixer_s_mean(family: str, label: str, tokens: Tensor) -> None:
    """Its mean over reference prompts takes its place: what is added is the mean of what it adds there."""
    model = zoo.bridge(family)
    reference = [[3, 4, 5], [9, 8], [7]]
    outputs = []
    for prompt in reference:
        cache = model.run_with_cache(torch.tensor([prompt]))[1]
        outputs.append(cache["blocks.0.hook_resid_mid"][0] - cache["blocks.0.hook_resid_pre"][0])
    mean = torch.cat(outputs).double().mean(0)
    with model.hooks(fwd_hooks=tlsv.ablation_hooks(model, label, mode="mean", reference=reference, position=-1)):
        cache = model.run_with_cache(tokens)[1]
    added = cache["blocks.0.hook_resid_mid"][0] - cache["blocks.0.hook_resid_pre"][0]
    assert (added[-1] - mean).abs().max() < 1e-4
    assert (added[0] - mean).abs().max() > 1e-3


@pytest.mark.bridge
def test_falcon_40b_s_configuration(tmp_path: Path) -> None:
    """multi_query=True beside the new decoder is told, with a way out that works and is Hugging Face's model."""
    _, arguments, _ = further_families.NOT_LOADED["falcon_grouped_multi_query"]
    hf = transformers.FalconForCausalLM(transformers.FalconConfig(**arguments)).eval()
    hf.save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(tlsv.UnsupportedModelError, match=r"has 2 and overlooks that setting.*multi_query to false"):
        tlsv.load_model(str(tmp_path), device="cpu")
    file = tmp_path / "config.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"multi_query": true', '"multi_query": false'), encoding="utf-8")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt = torch.tensor([[3, 4, 5]])
    assert torch.equal(hf(prompt).logits, again(prompt).logits)
    assert view_of(tlsv.load_model(str(tmp_path), device="cpu")).n_layers == 2
