"""The frozen model written again: changes led forward through it, with the model's own modules."""

from typing import Any

import torch
from torch import Tensor

from helpers.brute_force import PARALLEL, BruteForce, FrozenNorm, LinearMap


class FrozenForward:
    """Vectors added somewhere and led forward through the frozen model; modules are called, not read (float64)."""

    without_pre_norm = ("olmo2", "olmo3", "exaone4")
    one_norm = PARALLEL - {"gpt_neox_parallel"}

    def __init__(self, model: Any, family: str, tokens: Tensor, target: int, half: bool) -> None:
        self.target = target
        self.brute, self.model, self.family, self.half = BruteForce(model, family, tokens), model, family, half
        self.cache, self.d_model = self.brute.cache, self.brute.d_model
        self.n = tokens.shape[1]

    def normed(self, layer: int, sublayer: str, delta: Tensor) -> Tensor:
        """What a sublayer's projections read of a change of the residual stream, [pos, d_model]."""
        if self.family in self.without_pre_norm:
            return delta
        block = self.model.blocks[layer]
        norm = FrozenNorm(block.ln1 if sublayer == "attn" or self.family in self.one_norm else block.ln2, self.d_model)
        x = torch.stack([self.brute.residual(layer, sublayer, p) for p in range(self.n)])
        return delta @ norm.matrix / norm.scale(x)

    def attention(self, layer: int, delta: Tensor) -> Tensor:
        attn = self.model.blocks[layer].attn
        v = self.cache[f"blocks.{layer}.attn.hook_v"]
        _, kv_heads, d_head = v.shape
        values = LinearMap(lambda x: attn.v(x)[..., : kv_heads * d_head], self.d_model)
        dv = (self.normed(layer, "attn", delta) @ values.matrix).view(self.n, kv_heads, d_head)
        pattern = self.cache[f"blocks.{layer}.attn.hook_pattern"]
        dv = dv.repeat_interleave(len(pattern) // kv_heads, 1)
        z = torch.einsum("hqk,khd->qhd", pattern, dv).flatten(1)
        return self.out(layer, "attn", z)

    def ffn(self, layer: int, delta: Tensor) -> Tensor:
        return self.out(layer, "mlp", self.coefficients(layer, delta))

    def coefficients(self, layer: int, delta: Tensor) -> Tensor:
        """What a change of the residual stream adds to the neurons' coefficients, [pos, neuron]."""
        mlp, read = self.model.blocks[layer].mlp, self.normed(layer, "mlp", delta)
        m = self.cache[f"blocks.{layer}.mlp.hook_post"]
        x = torch.stack([self.brute.residual(layer, "mlp", p) for p in range(self.n)])
        up = self.projection(getattr(mlp, "in"), layer, x, read)
        if mlp.W_gate is None:
            whole, part = up
            return m / whole * part
        (u, du), (g, dg) = up, self.projection(mlp.gate, layer, x, read)
        return 0.5 * m / u * du + 0.5 * m / g * dg if self.half else m / u * du

    def projection(self, module: Any, layer: int, x: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """A projection of the run, and of a change."""
        linear = LinearMap(module, self.d_model)
        if self.family in self.without_pre_norm:
            return x @ linear.matrix + linear.bias, read @ linear.matrix
        block = self.model.blocks[layer]
        norm = FrozenNorm(block.ln1 if self.family in self.one_norm else block.ln2, self.d_model)
        normed = x @ norm.matrix / norm.scale(x) + norm.bias
        return normed @ linear.matrix + linear.bias, read @ linear.matrix

    def out(self, layer: int, sublayer: str, inner: Tensor) -> Tensor:
        made = inner @ self.brute._maps[layer, sublayer].matrix
        return torch.stack([self.brute._carry(layer, sublayer, p, made[p : p + 1])[0] for p in range(self.n)])

    def effect(self, layer: int, sublayer: str, at: int, vector: Tensor) -> float:
        """How far the measure moves, to first order, for a vector added by a sublayer at a position."""
        delta = torch.zeros(self.n, self.d_model, dtype=torch.float64)
        delta[at] = vector
        parallel = self.family in PARALLEL
        if sublayer == "attn" and not parallel:
            delta = delta + self.ffn(layer, delta)
        for number in range(layer + 1, self.brute.n_layers):
            attended = self.attention(number, delta)
            if parallel:
                delta = delta + attended + self.ffn(number, delta)
            else:
                delta = delta + attended
                delta = delta + self.ffn(number, delta)
        return self.moved(delta)

    def edge(self, layer: int, at: int, vector: Tensor, reader: tuple[int, int, int] | None) -> float:
        """What an FFN's vector (the embedding's: layer -1) adds to a coefficient through attention alone.

        The reader is a layer, a position, a neuron; without one it is the measure.
        """
        delta = torch.zeros(self.n, self.d_model, dtype=torch.float64)
        delta[at] = vector
        last = self.brute.n_layers if reader is None else reader[0]
        for number in range(layer + 1, last):
            delta = delta + self.attention(number, delta)
        if reader is None:
            return self.moved(delta)
        if self.family not in PARALLEL:
            delta = delta + self.attention(last, delta)
        return float(self.coefficients(last, delta)[reader[1], reader[2]])

    def moved(self, delta: Tensor) -> float:
        """How far the measure moves with the final residual stream."""
        final, last = self.brute.final(-1), self.n - 1
        before, after = self.brute.log_probs(torch.stack([final, final + delta[-1]]), last, "frozen")
        moved = after - before  # the logits' change, but for a constant
        return float(moved[self.target] - (before.exp() * moved).sum())
