"""The way of the authors' notebooks, written anew as a baseline: all logits of all subvalues of a layer at once.

For each layer: make every subvalue, add it to the residual stream, apply the final norm at its frozen scale, multiply
by the whole unembedding, take the softmax, and its logarithm. Nothing is shared between layers, nothing is left out.
"""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def increases(model: Any, cache: Any, token: int, gain: Tensor, kind: str) -> list[Tensor]:
    """Log-probability increase of every "ffn" or "attn" neuron at the last position, layer by layer (Llama-style)."""
    scale = cache["ln_final.hook_scale"][0, -1]
    W_U = model.W_U
    result = []
    for layer, block in enumerate(model.blocks):
        if kind == "ffn":
            x = cache[f"blocks.{layer}.hook_resid_mid"][0, -1]
            v = cache[f"blocks.{layer}.mlp.hook_post"][0, -1][:, None] * block.mlp.W_out
        else:
            x = cache[f"blocks.{layer}.hook_resid_pre"][0, -1]
            pattern, values = cache[f"blocks.{layer}.attn.hook_pattern"][0], cache[f"blocks.{layer}.attn.hook_v"][0]
            values = values.repeat_interleave(pattern.shape[0] // values.shape[1], 1)
            z = pattern[:, -1].T[:, :, None] * values
            v = (z[..., None] * block.attn.W_O[None]).flatten(0, 2)
        base = torch.softmax(x / scale * gain @ W_U, -1)[token].log()
        probs = torch.softmax((x + v) / scale * gain @ W_U, -1)
        result.append(probs[:, token].log() - base)
    return result
