"""Caches as users have them: moved, cast, without a batch dimension, of some positions, made with gradients on."""

import functools

import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv

TARGET = 9
BY = ("head", "head_position", "neuron")


@pytest.fixture(scope="module")
def model():
    return zoo.hooked("rotary_gated_grouped") if zoo.has_hooked_transformer() else zoo.model("llama")


def everything(trace: tlsv.Trace) -> list[pd.DataFrame]:
    """Tables of every kind, switched-on scores and curves among them."""
    values = trace.ffn_neurons(top=4)
    return [
        trace.layers(),
        trace.head_positions(),
        values,
        trace.attn_neurons(top=None),
        trace.vocabulary("L1N3"),
        trace.activations("L1N3", by="head"),
        trace.activations("L1H0D1@2"),
        trace.query_layers(values),
        trace.query_head_positions(values),
        trace.curve(values),
    ]


@pytest.mark.slow
def test_a_cache_in_another_dtype_gives_what_its_numbers_give(model, tokens) -> None:
    """float64 holds the same numbers as float32: the same tables, to the bit."""
    _, cache = model.run_with_cache(tokens)
    expected = everything(tlsv.trace(model, tokens, TARGET, cache=cache))
    cache.cache_dict.update({name: tensor.double() for name, tensor in cache.items()})
    for ours, theirs in zip(everything(tlsv.trace(model, tokens, TARGET, cache=cache)), expected, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)


def test_a_cache_rounded_to_half_precision_is_refused(model, tokens) -> None:
    """A float32 model's sums hold to 1e-4, a cache cast to bfloat16 is off by more: refused, naming the sum."""
    _, cache = model.run_with_cache(tokens)
    cache.cache_dict.update({name: tensor.bfloat16() for name, tensor in cache.items()})
    with pytest.raises((tlsv.UnsupportedModelError, ValueError), match=r"not resid_mid|add up|scale in the cache"):
        tlsv.trace(model, tokens, TARGET, cache=cache)


@pytest.mark.slow
def test_a_cache_moved_with_to(model, tokens) -> None:
    """`cache.to` keeps the numbers, and the trace takes them from there."""
    _, cache = model.run_with_cache(tokens)
    expected = everything(tlsv.trace(model, tokens, TARGET, cache=cache))
    moved = cache.to("cpu")
    for ours, theirs in zip(everything(tlsv.trace(model, tokens, TARGET, cache=moved)), expected, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)


def test_a_cache_without_a_batch_dimension(model, tokens) -> None:
    """remove_batch_dim, and cache.remove_batch_dim() afterwards: every table as with one."""
    expected = everything(tlsv.trace(model, tokens, TARGET, cache=model.run_with_cache(tokens)[1]))
    _, without = model.run_with_cache(tokens, remove_batch_dim=True)
    _, removed = model.run_with_cache(tokens)
    removed.remove_batch_dim()
    for cache in (without, removed):
        assert not cache.has_batch_dim
        for ours, theirs in zip(everything(tlsv.trace(model, tokens, TARGET, cache=cache)), expected, strict=True):
            pd.testing.assert_frame_equal(ours, theirs)


@pytest.mark.parametrize("pos_slice", [-1, (1, 4)])
def test_a_cache_of_some_positions(model, tokens, pos_slice) -> None:
    """Heads and FFN neurons at the positions that it holds; sources are refused, for their values are not there."""
    _, whole = model.run_with_cache(tokens)
    _, some = model.run_with_cache(tokens, pos_slice=pos_slice)
    chosen = [-1] if pos_slice == -1 else [1, 2, 3]
    for ours, function in (("attn", tlsv.attn_subvalues), ("mlp", tlsv.ffn_subvalues)):
        held = function(model, some, 1, pos_slice=None, incl_bias=True)
        torch.testing.assert_close(held, function(model, whole, 1, pos_slice=None, incl_bias=True)[:, :, chosen])
        torch.testing.assert_close(held.sum(0), some[f"blocks.1.hook_{ours}_out"], atol=1e-5, rtol=1e-5)
    for by in BY[1:]:
        with pytest.raises(ValueError, match=r"pos_slice.*by='head'"):
            tlsv.attn_subvalues(model, some, 1, by=by, pos_slice=None)


def test_nothing_is_left_of_gradients(model, tokens) -> None:
    """With gradients on and a cache in the graph, no result has a graph, and the model's own still works."""
    kept: dict[str, torch.Tensor] = {}

    def keep(tensor: torch.Tensor, hook, name: str) -> None:
        kept[name] = tensor

    with torch.enable_grad():
        assert next(model.parameters()).requires_grad
        names = tlsv.trace(model, tokens, TARGET).run.view.hooks()
        logits = model.run_with_hooks(tokens, fwd_hooks=[(name, functools.partial(keep, name=name)) for name in names])
        assert kept["blocks.1.mlp.hook_post"].requires_grad
        _, cache = model.run_with_cache(tokens)
        cache.cache_dict.update({name: kept[name] for name in names})
        trace = tlsv.trace(model, tokens, TARGET, cache=cache)
        stacks = [tlsv.attn_subvalues(model, cache, 1, by=by) for by in BY]
        stacks.append(tlsv.ffn_subvalues(model, cache, 1))
        readout = tlsv.Readout(model, scale=kept["ln_final.hook_scale"][:, -1])
        x = kept["blocks.1.hook_resid_mid"][:, -1]
        scores = [f(readout, x, stacks[-1], TARGET) for f in (tlsv.log_prob_increase, tlsv.prob_increase)]
        assert not any(tensor.requires_grad for tensor in [*stacks, *scores, readout.logits(x), readout.bs_values(x)])
        for table in everything(trace):
            assert not any(isinstance(value, torch.Tensor) for value in table.to_numpy().ravel())
        figure = pytest.importorskip("matplotlib.figure").Figure()
        trace.plot_curve(trace.ffn_neurons(top=3), ax=figure.subplots())
        trace.plot_activations("L1N3", ax=figure.subplots())
        assert trace.log_prob == pytest.approx(float(logits[0, -1].log_softmax(-1)[TARGET].detach()), abs=1e-5)
        logits.sum().backward()
    assert next(model.parameters()).grad is not None
    model.zero_grad()
