"""Keys, biases and norms as the view gives them reproduce what the model computes from its residual stream."""

import pytest
import torch
from helpers import zoo

from tl_subvalues.model_view import view_of

MODES = [False, True]


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("compatibility", MODES, ids=["default", "compat"])
@pytest.mark.parametrize("family", sorted(zoo.DENSE))
def test_keys_and_norms(family: str, compatibility: bool, tokens: torch.Tensor) -> None:
    """norm(x) W_V + b_V is the cached value, norm(x) W_in + b_in (gated: W_gate) the cached pre-activation."""
    model = zoo.model(family, compatibility=compatibility)
    _, cache = model.run_with_cache(tokens)
    view = view_of(model)
    for layer in view.layers:
        block = f"blocks.{layer.layer}."
        attention, ffn = layer.attention(), layer.ffn()
        x = cache[f"{block}hook_resid_pre"][0]
        mid = x if layer.parallel else cache[f"{block}hook_resid_mid"][0]
        read = x if attention.norm is None else attention.norm(x)
        values = torch.einsum("pm,hmd->phd", read, attention.W_V)
        if attention.b_V is not None:
            values = values + attention.b_V
        assert relative_error(values, cache[f"{block}attn.hook_v"][0]) < 1e-4
        read = mid if ffn.norm is None else ffn.norm(mid)
        weight, bias = (ffn.W_in, ffn.b_in) if ffn.W_gate is None else (ffn.W_gate, ffn.b_gate)
        pre = read @ weight + (0.0 if bias is None else bias)
        cached = cache[f"{block}mlp.hook_pre"][0]
        assert relative_error(pre, cached[..., : pre.shape[-1]]) < 1e-4


@pytest.mark.hooked
@pytest.mark.parametrize("variant", sorted(set(zoo.HOOKED) - {"attn_only", "shortformer"}))
def test_keys_and_norms_of_hooked_transformer(variant: str, tokens: torch.Tensor) -> None:
    """The same on HookedTransformer, whose grouped value weights come one per key/value head."""
    model = zoo.hooked(variant)
    _, cache = model.run_with_cache(tokens)
    for layer in view_of(model).layers:
        block = f"blocks.{layer.layer}."
        attention, ffn = layer.attention(), layer.ffn()
        x = cache[f"{block}hook_resid_pre"][0]
        mid = x if layer.parallel else cache[f"{block}hook_resid_mid"][0]
        read = x if attention.norm is None else attention.norm(x)
        values = torch.einsum("pm,hmd->phd", read, attention.W_V) + attention.b_V
        assert relative_error(values, cache[f"{block}attn.hook_v"][0]) < 1e-4
        read = mid if ffn.norm is None else ffn.norm(mid)
        pre = read @ ffn.W_in + ffn.b_in if ffn.W_gate is None else read @ ffn.W_gate
        assert relative_error(pre, cache[f"{block}mlp.hook_pre"][0]) < 1e-4
