"""What could make a number silently wrong, and what is done about it: refused, or computed right all the same."""

import numpy as np
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view import view_of


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite"])
@pytest.mark.parametrize("hook", ["hook_attn_out", "hook_mlp_out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_checked_against_their_own_size(
    family: str, hook: str, dtype: torch.dtype, tokens: torch.Tensor
) -> None:
    """An entry of 20,000 in the residual stream, as trained models have, does not hide a sublayer off by 0.3."""
    model = zoo.bridge(family, dtype=dtype)

    def massive(value: torch.Tensor, hook: object) -> torch.Tensor:
        value[..., 3] += 2e4
        return value

    hooks = [("blocks.0.hook_in", massive)]
    with model.hooks(fwd_hooks=hooks):
        tlsv.trace(model, tokens, 5)  # the large entry alone is no reason to refuse
    edited = [*hooks, (f"blocks.1.{hook}", lambda value, hook: value * 1.3)]
    with model.hooks(fwd_hooks=edited), pytest.raises(tlsv.UnsupportedModelError, match="layer 1"):
        tlsv.trace(model, tokens, 5)


@pytest.mark.few_families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted(zoo.DENSE))
def test_half_precision_is_not_refused(family: str, dtype: torch.dtype, tokens: torch.Tensor) -> None:
    """In every family, rounding of half precision stays within the tolerances, at the first position and the last."""
    model = zoo.model(family, dtype=dtype)
    own = model(tokens).float().log_softmax(-1)
    for position in (0, -1):
        trace = tlsv.trace(model, tokens, 5, position=position)
        assert trace.log_prob == pytest.approx(own[0, position, 5].item(), abs=0.15)


def test_a_scale_of_another_run_is_refused(tokens: torch.Tensor) -> None:
    """The frozen scale of a given cache must be its final residual stream's."""
    model = zoo.model("llama")
    _, cache = model.run_with_cache(tokens)
    cache.cache_dict["ln_final.hook_scale"] = cache["ln_final.hook_scale"] * 2
    with pytest.raises(ValueError, match="scale in the cache"):
        tlsv.trace(model, tokens, 5, cache=cache)


def test_changed_weights_are_noticed(tokens: torch.Tensor) -> None:
    """Tables are made of the run's activations and the model's weights: an old run and new weights do not mix."""
    model = zoo.bridge("llama")
    trace = tlsv.trace(model, tokens, 5)
    trace.ffn_neurons()
    with torch.no_grad():
        model.original_model.model.layers[1].mlp.down_proj.weight.mul_(2.0)
    for call in (trace.ffn_neurons, trace.heads, lambda: trace.vocabulary("L1N3")):
        with pytest.raises(ValueError, match="trace the prompt again"):
            call()
    tlsv.trace(model, tokens, 5).ffn_neurons()


def test_autocast_does_not_reach_the_numbers(tokens: torch.Tensor) -> None:
    """Under torch.autocast the same bits come out: nothing is computed in half precision."""
    model = zoo.model("llama")
    trace = tlsv.trace(model, tokens, 5)
    expected = trace.ffn_neurons(top=None), trace.vocabulary("L0N1")
    _, cache = model.run_with_cache(tokens)
    stack = tlsv.attn_subvalues(model, cache, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trace.ffn_neurons(top=None).equals(expected[0])
        assert trace.vocabulary("L0N1").equals(expected[1])
        assert torch.equal(tlsv.attn_subvalues(model, cache, 1), stack)


def test_masks_and_arrays_select_what_they_say(tokens: torch.Tensor) -> None:
    """A mask selects, numpy integers and empty lists are indices, and what is neither is refused."""
    model = zoo.model("llama")
    _, cache = model.run_with_cache(tokens)
    mask = torch.zeros(48, dtype=torch.bool)
    mask[[3, 7]] = True

    def labels(neuron_slice: object) -> list[str]:
        return tlsv.ffn_subvalues(model, cache, 1, neuron_slice=neuron_slice, return_labels=True)[1]

    assert labels(mask) == labels(mask.numpy()) == labels([3, 7]) == ["L1N3", "L1N7"]
    assert labels(np.int64(2)) == labels(torch.tensor(2)) == ["L1N2"]
    assert labels([]) == []
    at = torch.arange(tokens.shape[1]) == 2
    assert torch.equal(
        tlsv.attn_subvalues(model, cache, 0, pos_slice=at), tlsv.attn_subvalues(model, cache, 0, pos_slice=[2])
    )
    for bad in ([0.5, 1.7], mask[:5], "all", True, {"a": 1}):
        with pytest.raises(ValueError, match="neuron"):
            labels(bad)


@pytest.mark.parametrize("scale", [True, 0.0, -1.0, float("nan"), None, "x"])
def test_a_scale_that_is_none_is_refused(scale: object) -> None:
    """A frozen scale is positive and finite."""
    with pytest.raises(Exception, match="scale"):
        tlsv.Readout(zoo.model("llama"), scale=scale)


def test_numpy_prompts_and_positions(tokens: torch.Tensor) -> None:
    """Arrays and numpy integers are as good as lists and ints."""
    model = zoo.model("llama")
    expected = tlsv.trace(model, tokens, 5, position=2)
    trace = tlsv.trace(model, tokens[0].numpy(), np.int64(5), position=2)
    assert trace.log_prob == expected.log_prob
    assert view_of(model).layer(1).layer == 1
