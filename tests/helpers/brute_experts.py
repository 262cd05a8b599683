"""Mixtures of experts written down from Hugging Face's formulas, one expert and one neuron at a time, in float64.

Shares no code with the package and calls no router and no experts module: parameters by name, formulas by family.
"""

import re
from typing import Any

import torch
from torch import Tensor

from helpers.brute_force import PARALLEL, BruteForce, call

# Families whose experts are stored [in, out] instead of [out, in]; those that have gate and up projections in turn.
IN_OUT = {"gpt_oss", "llama4"}
IN_TURN = {"gpt_oss"}
# A gate acts on attention's z after the mixing, so heads cannot be told apart by source position.
GATED = {"qwen3_next"}
GROUPED = {"deepseek_v3", "glm4_moe", "glm4_moe_lite"}


class BruteForceMixture(BruteForce):
    """A run of a model with mixtures of experts; dense layers and attention as in `BruteForce`."""

    def mixture(self, layer: int) -> Any:
        """The layer's own mixture of experts, None where its FFN is dense."""
        block = self.model.blocks[layer].mlp.original_component
        return block if hasattr(block, "experts") else None

    def _map(self, layer: int, sublayer: str) -> Any:
        if sublayer == "mlp" and self.mixture(layer) is not None:
            return None
        if sublayer == "mlp" and hasattr(self.model.blocks[layer].mlp, "dense_out"):
            return self._linear(self.model.blocks[layer].mlp.dense_out, layer)
        return super()._map(layer, sublayer)

    def residual(self, layer: int, sublayer: str, position: int) -> Tensor:
        if sublayer == "mlp" and self.family not in PARALLEL:
            return self.cache[f"blocks.{layer}.hook_resid_mid"][position]
        return super().residual(layer, sublayer, position)

    def has(self, layer: int, sublayer: str) -> bool:
        return sublayer == "mlp" or "attn" in self.model.blocks[layer]._modules

    def _post_norm(self, layer: int, sublayer: str) -> Any:
        if self.family == "olmo_hybrid" and "linear_attn" in self.model.blocks[layer]._modules:
            return None  # these layers norm before the sublayer
        return super()._post_norm(layer, sublayer)

    def _d_z(self, layer: int) -> int:
        return self.cache[f"blocks.{layer}.attn.hook_z"][0].numel()

    def values(self, layer: int) -> Tensor:
        v = self.cache[f"blocks.{layer}.attn.hook_v"]
        return v.transpose(0, 1) if hasattr(self.model.blocks[layer].attn, "kv_b_proj") else v

    def experts_input(self, layer: int, position: int) -> Tensor:
        """What the mixture reads: the residual stream through the norm before it, where there is one."""
        x = self.residual(layer, "mlp", position)[None]
        # FlexOlmo norms after its sublayers alone; TransformerLens 3.9 calls that norm `ln2` too.
        norm = None if self.family == "flex_olmo" else self.model.blocks[layer]._modules.get("ln2")
        return (x if norm is None else call(norm, x))[0]

    def _raw(self, layer: int, sublayer: str, position: int) -> dict[str, Tensor]:
        if sublayer == "attn" and self.family in GATED:  # by z, which says nothing of source positions
            z = self.cache[f"blocks.{layer}.attn.hook_z"][position]
            rows = self._maps[layer, sublayer].matrix.view(*z.shape, -1)
            return {f"L{layer}H{h}D{i}@0": z[h, i] * rows[h, i] for h in range(len(z)) for i in range(z.shape[1])}
        if sublayer != "mlp" or self.mixture(layer) is None:
            return super()._raw(layer, sublayer, position)
        return self._mixture_parts(layer, position)[0]

    def constant(self, layer: int, sublayer: str, position: int) -> Tensor:
        if sublayer != "mlp" or self.mixture(layer) is None:
            return super().constant(layer, sublayer, position)
        return self._mixture_parts(layer, position)[1]

    def _mixture_parts(self, layer: int, position: int) -> tuple[dict[str, Tensor], Tensor]:
        block = self.mixture(layer)
        tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}
        p = {re.sub(r"_?original_component\.", "", name): value.detach().double() for name, value in tensors.items()}
        x = self.experts_input(layer, position)
        weights = route(self.family, x, p, self.config)
        parts: dict[str, Tensor] = {}
        constant = torch.zeros(self.d_model, dtype=torch.float64)
        for expert, weight in weights.items():
            fused, W_out = p["experts.gate_up_proj"][expert], p["experts.down_proj"][expert]
            if self.family not in IN_OUT:
                fused, W_out = fused.T, W_out.T
            read = x * weight if self.family == "llama4" else x
            both = read @ fused
            if self.family == "gpt_oss":
                both = both + p["experts.gate_up_proj_bias"][expert]
                constant = constant + weight * p["experts.down_proj_bias"][expert]
            half = len(both) // 2
            gate, up = (both[::2], both[1::2]) if self.family in IN_TURN else (both[:half], both[half:])
            if self.family == "gpt_oss":
                gate, up = gate.clamp(max=7.0), up.clamp(min=-7.0, max=7.0) + 1
                m = gate / (1 + torch.exp(-1.702 * gate)) * up
            else:
                m = silu(gate) * up
            if self.family != "llama4":
                m = m * weight
            parts |= {f"L{layer}E{expert}N{n}": m[n] * W_out[n] for n in range(half)}
        name = next((n for n in ("shared_expert", "shared_experts") if f"{n}.down_proj.weight" in p), None)
        if name is not None:
            n_routed = len(p["experts.down_proj"])
            gate, up = (linear(x, p, f"{name}.{which}_proj") for which in ("gate", "up"))
            weight = 1.0
            if "shared_expert_gate.weight" in p:
                weight = 1 / (1 + torch.exp(-x @ p["shared_expert_gate.weight"][0]))
            m, W_out = silu(gate) * up * weight, p[f"{name}.down_proj.weight"].T
            parts |= {f"L{layer}E{n_routed}N{n}": m[n] * W_out[n] for n in range(len(m))}
            constant = constant + weight * p.get(f"{name}.down_proj.bias", torch.zeros_like(constant))
        return parts, constant


def linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def route(family: str, x: Tensor, p: dict[str, Tensor], config: Any) -> dict[int, Tensor]:
    """expert -> routing weight, for the experts that token x is sent to."""
    router = "gate" if "gate.weight" in p else "router"
    logits = linear(x, p, router)
    k = config.num_experts_per_tok
    probs = logits.softmax(-1)
    if family in ("mixtral", "olmoe", "flex_olmo", "qwen2_moe", "qwen3_moe", "qwen3_next", "jamba"):
        chosen = best(probs, k)
        normed = family == "mixtral" or getattr(config, "norm_topk_prob", False)
        return shares(probs, chosen) if normed else {e: probs[e] for e in chosen}
    if family in ("granitemoe", "gpt_oss"):
        chosen = best(logits, k)
        return shares(logits.exp(), chosen)
    if family == "llama4":
        return {e: 1 / (1 + torch.exp(-logits[e])) for e in best(logits, k)}
    if family == "phimoe":
        return sparsemixer(logits, 2 * config.router_jitter_noise)
    if family == "deepseek_v2":
        chosen = best(probs, k)
        return {e: probs[e] * config.routed_scaling_factor for e in chosen}
    if family == "ernie4_5_moe":
        bias = next(value for name, value in p.items() if "e_score_correction_bias" in name).flatten()
        return shares(probs, best(probs + bias, k))
    scores = 1 / (1 + torch.exp(-logits))
    if family == "minimax_m2":
        return shares(scores, best(scores + p["e_score_correction_bias"], k))
    if family == "lfm2_moe":
        chosen = best(scores + p["expert_bias"], k)
        total = sum(float(scores[e]) for e in chosen) + 1e-6 if config.norm_topk_prob else 1.0
        return {e: scores[e] / total * config.routed_scaling_factor for e in chosen}
    assert family in GROUPED, family
    choice = scores + p[f"{router}.e_score_correction_bias"]
    size = len(choice) // config.n_group
    groups = [sum(sorted(choice[g * size : (g + 1) * size].tolist())[-2:]) for g in range(config.n_group)]
    open_groups = sorted(range(config.n_group), key=lambda g: groups[g])[-config.topk_group :]
    allowed = [e for e in range(len(choice)) if e // size in open_groups]
    chosen = sorted(allowed, key=lambda e: float(choice[e]))[-k:]
    found = shares(scores, chosen) if config.norm_topk_prob else {e: scores[e] for e in chosen}
    return {e: weight * config.routed_scaling_factor for e, weight in found.items()}


def best(values: Tensor, k: int) -> list[int]:
    return sorted(range(len(values)), key=lambda e: float(values[e]))[-k:]


def shares(values: Tensor, chosen: list[int]) -> dict[int, Tensor]:
    return {e: values[e] / sum(values[i] for i in chosen) for e in chosen}


def sparsemixer(logits: Tensor, threshold: float) -> dict[int, Tensor]:
    """PhiMoE: the best expert by a softmax over those near it, then the best of the others likewise."""
    found: dict[int, Tensor] = {}
    for _ in range(2):
        left = [e for e in range(len(logits)) if e not in found]
        top = max(left, key=lambda e: float(logits[e]))
        near = [e for e in left if (logits[top] - logits[e]) / torch.maximum(logits[e].abs(), logits[top]) <= threshold]
        found[top] = logits[top].exp() / sum(logits[e].exp() for e in near)
    return found
