"""All rows of a tiny model, read off its modules one by one: what `find`, `similar` and the index are held to."""

from typing import Any

import torch
from torch import Tensor

from helpers import zoo
from helpers.brute_experts import IN_OUT, BruteForceMixture
from helpers.brute_force import GRANITE, BruteForce, LinearMap

TOKENS = torch.tensor([[7, 31, 12]])


class RowsByHand:
    """Labels, rows as they enter the residual stream, and their values of all words, in float64."""

    def __init__(self, model: Any, family: str, unit: str) -> None:
        kind = BruteForceMixture if family in zoo.MIXTURES else BruteForce
        self._brute = kind(model, family, TOKENS)
        self._unembed = LinearMap(model.unembed, self._brute.d_model).matrix * self._brute.factor
        labels, rows = [], []
        for layer in range(self._brute.n_layers):
            own = self._ffn(layer) if unit == "ffn_neuron" else self._attn(layer)
            post = self._brute._posts.get((layer, "mlp" if unit == "ffn_neuron" else "attn"))
            for label, row in own.items():
                labels.append(label)
                row = row if post is None else row @ post.matrix
                rows.append(row * (self._brute.config.residual_multiplier if family in GRANITE else 1.0))
        self.labels, self.rows = labels, torch.stack(rows)

    def values(self, by: str) -> Tensor:
        """[row, word]."""
        norm, U = self._brute.final_norm, self._unembed
        lin = self.rows if norm is None else self.rows @ norm.matrix
        if by == "bs_value":
            return lin @ U
        centred = U - U.mean(1, keepdim=True)
        return (lin @ centred) / (lin.norm(dim=1, keepdim=True) * centred.norm(dim=0))

    def _attn(self, layer: int) -> dict[str, Tensor]:
        matrix = self._brute._maps[layer, "attn"].matrix
        n_heads = self._brute.cache[f"blocks.{layer}.attn.hook_pattern"].shape[0]
        d_head = len(matrix) // n_heads
        return {f"L{layer}H{i // d_head}D{i % d_head}": row for i, row in enumerate(matrix)}

    def _ffn(self, layer: int) -> dict[str, Tensor]:
        brute = self._brute
        if brute._maps[layer, "mlp"] is not None:
            return {f"L{layer}N{n}": row for n, row in enumerate(brute._maps[layer, "mlp"].matrix)}
        assert isinstance(brute, BruteForceMixture)
        parameters = {
            name.replace("_original_component.", ""): value for name, value in brute.mixture(layer).named_parameters()
        }
        found = {}
        routed = (
            next(value for name, value in parameters.items() if name.endswith("experts.down_proj")).detach().double()
        )
        for expert, W in enumerate(routed if brute.family in IN_OUT else routed.transpose(1, 2)):
            found |= {f"L{layer}E{expert}N{n}": row for n, row in enumerate(W)}
        for name, value in parameters.items():
            if "shared_expert" in name and name.endswith("down_proj.weight"):
                shared = value.detach().double().T
                found |= {f"L{layer}E{len(routed)}N{n}": row for n, row in enumerate(shared)}
        return found
