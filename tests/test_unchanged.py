"""Tables are made of a run's activations and the model's weights: what was written to since is noticed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv


def calls(trace: tlsv.Trace) -> dict[str, Callable[[], Any]]:
    return {
        "ffn_neurons": lambda: trace.ffn_neurons(top=5),
        "all ffn_neurons": lambda: trace.ffn_neurons(top=None),
        "attn_neurons": lambda: trace.attn_neurons(top=5),
        "heads": trace.heads,
        "layers": trace.layers,
        "curve": lambda: trace.curve(["L1N3", "L0N2"]),
    }


def edit_readout(model: Any) -> None:
    model.unembed.original_component.weight.data.mul_(1.1)


def edit_one_word(model: Any) -> None:
    model.unembed.original_component.weight.data[30] += 1.0


def edit_final_norm(model: Any) -> None:
    model.ln_final.original_component.weight.data.mul_(0.9)


@pytest.mark.any_release
@pytest.mark.slow
@pytest.mark.parametrize("edit", [edit_readout, edit_one_word, edit_final_norm])
@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
@pytest.mark.parametrize("first", [False, True])
def test_a_readout_edited_through_data(edit: Callable[[Any], None], scale: Any, first: bool, tokens: Tensor) -> None:
    """Before the first table and after it; autograd's counter does not see such writes."""
    model = zoo.bridge("llama")
    trace = tlsv.trace(model, tokens, 5, scale=scale)
    if first:
        trace.layers()
    edit(model)
    for name, call in calls(trace).items():
        with pytest.raises(ValueError, match="trace the prompt again"):
            pytest.fail(f"{name}: {call()}")
    tlsv.trace(model, tokens, 5, scale=scale).layers()


@pytest.mark.parametrize(
    ("edited", "seen"),
    [
        ("mlp.down_proj", ("ffn_neurons", "all ffn_neurons", "curve")),
        ("self_attn.o_proj", ("attn_neurons", "heads")),
    ],
)
def test_weights_edited_through_data(edited: str, seen: tuple[str, ...], tokens: Tensor) -> None:
    """One neuron or head set to zero behind autograd's back: its sublayer's parts no longer add up to the run's."""
    model = zoo.bridge("llama")
    trace = tlsv.trace(model, tokens, 5)
    trace.layers()
    layer = model.original_model.model.layers[1]
    layer.get_submodule(edited).weight.data[:, :8] = 0.0
    for name in seen:
        with pytest.raises(ValueError, match="trace the prompt again"):
            pytest.fail(f"{name}: {calls(trace)[name]()}")


def test_a_cache_that_was_written_to(tokens: Tensor) -> None:
    """In place, through data, or with an entry replaced."""

    def in_place(cache: Any) -> None:
        cache["blocks.1.mlp.hook_post"].mul_(0.5)

    def through_data(cache: Any) -> None:
        cache["blocks.1.mlp.hook_post"].data.mul_(0.5)

    def replaced(cache: Any) -> None:
        cache.cache_dict["blocks.1.mlp.hook_post"] = cache["blocks.1.mlp.hook_post"] * 0.5

    for write in (in_place, through_data, replaced):
        trace = tlsv.trace(zoo.bridge("llama"), tokens, 5)
        write(trace.cache)
        with pytest.raises(ValueError, match="trace the prompt again"):
            pytest.fail(f"{write.__name__}: {trace.ffn_neurons(top=5)}")


def test_a_cache_of_before_the_readout_was_edited(tokens: Tensor) -> None:
    """A given cache that holds the run's logits must read as them."""
    model = zoo.bridge("llama")
    _, cache = model.run_with_cache(tokens)
    tlsv.trace(model, tokens, 5, cache=cache)
    edit_readout(model)
    with pytest.raises((ValueError, tlsv.UnsupportedModelError), match="unembedding"):
        tlsv.trace(model, tokens, 5, cache=cache)


def test_a_model_made_in_inference_mode(tokens: Tensor) -> None:
    """Its tensors have no version to compare; everything else works."""
    with torch.inference_mode():
        model = zoo.bridge("llama")
        trace = tlsv.trace(model, tokens, 5)
        inside = trace.ffn_neurons(top=5)
    outside = tlsv.trace(model, tokens, 5).ffn_neurons(top=5)
    assert inside["label"].tolist() == outside["label"].tolist()
