"""An independent, slow reference: subvalues and their importance from first principles.

Shares no code with the package. Weights are never read from TransformerLens's W_O, W_out, norm gains and
so on: the output projections, norms and unembeddings are *called*, and what is linear in them is read off their
answers to unit vectors. What a family does around them is written down here by its Hugging Face names.
All arithmetic after a call is in float64.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Attention and FFN read the same residual stream.
PARALLEL = {
    "gpt_neox_parallel",
    "gptj",
    "codegen",
    "falcon_multi_query",
    "phi",
    "stablelm_parallel",
    "cohere",
    "cohere2",
    "parallel",  # a HookedTransformer
}
GRANITE = {"granite", "granitemoe"}
# Norms between a sublayer and the residual stream, as Hugging Face names them in a layer.
_OLMO = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
_GLM = {"attn": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"}
POST_NORMS = {
    **dict.fromkeys(("gemma2", "gemma3", "olmo2", "olmo3", "exaone4", "flex_olmo", "olmo_hybrid"), _OLMO),
    "glm4": _GLM,
}


def call(module: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`module` on rows x [n, d], in the model's dtype, as one batch; the answer in float64."""
    with torch.no_grad():
        return module(x.to(dtype)[None])[0].double()


class LinearMap:
    """y = x @ matrix + bias, read off a module by calling it on zero and on unit vectors."""

    def __init__(self, module: Callable[[Tensor], Tensor], d_in: int) -> None:
        self.bias = call(module, torch.zeros(1, d_in))[0]
        self.matrix = call(module, torch.eye(d_in)) - self.bias  # [d_in, d_out]


class FrozenNorm:
    """N(x) = M x / s(x) + bias, with M and bias read off a norm module by calling it.

    A layer norm answers long constant vectors with its bias alone, an RMS norm does not; long
    vectors make eps vanish. The scale s at some x is then the ratio of M x to N(x) - bias.
    """

    def __init__(self, module: Callable[[Tensor], Tensor], d_model: int, length: float = 4096.0) -> None:
        self.module = module
        self.bias = call(module, torch.zeros(1, d_model))[0]
        constant = call(module, torch.full((1, d_model), length))[0] - self.bias
        unit = torch.eye(d_model, dtype=torch.float64)
        answers = call(module, length * unit) - self.bias
        centred = unit - 1 / d_model if constant.abs().max() < 0.1 * answers.abs().max() else unit
        self.matrix = answers * centred.pow(2).mean(-1, keepdim=True).sqrt()  # rows: M e_i

    def scale(self, x: Tensor) -> Tensor:
        """What the norm divides x [n, d] by: [n, 1]."""
        answer = call(self.module, x) - self.bias
        return (x @ self.matrix).norm(dim=-1, keepdim=True) / answer.norm(dim=-1, keepdim=True)


class BruteForce:
    """One run of one model; all its parts and their importance, by position.

    Args:
        model: a TransformerBridge, or a HookedTransformer.
        family: its name in the zoo.
        tokens: one prompt, [1, pos].
        folded: whether the model is in compatibility mode, where Cohere's logit factor is in W_U.
    """

    def __init__(self, model: Any, family: str, tokens: Tensor, folded: bool = False) -> None:
        self.model, self.family = model, family
        with torch.no_grad():
            logits, cache = model.run_with_cache(tokens)
        self.own_log_probs = logits[0].double().log_softmax(-1)  # [pos, vocab]
        self.cache: dict[str, Tensor] = {name: value[0].double() for name, value in cache.items() if value.ndim > 2}
        self.n_layers, self.n_positions = len(model.blocks), tokens.shape[1]
        self.d_model = self.cache["blocks.0.hook_resid_pre"].shape[-1]
        self.bridge = hasattr(model, "original_model")
        self.config = model.original_model.config if self.bridge else model.cfg
        self.factor, self.cap = self._logit_transform(folded)
        ln_final = model._modules.get("ln_final")
        self.final_norm = None if ln_final is None else FrozenNorm(ln_final, self.d_model)
        self._maps = {(i, s): self._map(i, s) for i in range(self.n_layers) for s in ("attn", "mlp") if self.has(i, s)}
        self._posts = {key: norm for key in self._maps if (norm := self._post_norm(*key)) is not None}

    # What the family does, by its own names.

    def _logit_transform(self, folded: bool) -> tuple[float, float | None]:
        if not self.bridge:
            return 1.0, self.config.output_logits_soft_cap if self.config.output_logits_soft_cap > 0 else None
        if self.family in ("cohere", "cohere2"):
            return (1.0 if folded else self.config.logit_scale), None
        if self.family in GRANITE:
            return 1 / self.config.logits_scaling, None
        return 1.0, self.config.final_logit_softcapping if self.family == "gemma2" else None

    def _map(self, layer: int, sublayer: str) -> LinearMap:
        """The last linear map of a sublayer, from what its parts are written in to d_model."""
        block = self.model.blocks[layer]
        if self.bridge:
            module = block.attn.o if sublayer == "attn" else block.mlp.out
        elif sublayer == "attn":
            W, b = block.attn.state_dict()["W_O"], block.attn.state_dict()["b_O"]
            module = lambda z: z @ W.flatten(0, 1) + b  # noqa: E731
        else:
            W, b = block.mlp.state_dict()["W_out"], block.mlp.state_dict()["b_out"]
            module = lambda m: m @ W + b  # noqa: E731
        return self._linear(module, layer) if sublayer == "mlp" else LinearMap(module, self._d_z(layer))

    def _linear(self, module: Callable[[Tensor], Tensor], layer: int) -> LinearMap:
        return LinearMap(module, self.cache[f"blocks.{layer}.mlp.hook_post"].shape[-1])

    def _d_z(self, layer: int) -> int:
        v = self.cache[f"blocks.{layer}.attn.hook_v"]
        return self.cache[f"blocks.{layer}.attn.hook_pattern"].shape[0] * v.shape[-1]

    def _post_norm(self, layer: int, sublayer: str) -> FrozenNorm | None:
        if not self.bridge:
            module = getattr(self.model.blocks[layer], "ln1_post" if sublayer == "attn" else "ln2_post", None)
        elif self.family in POST_NORMS:
            module = getattr(self.model.original_model.model.layers[layer], POST_NORMS[self.family][sublayer])
        else:
            module = None
        return None if module is None else FrozenNorm(module, self.d_model)

    def has(self, layer: int, sublayer: str) -> bool:
        return sublayer == "attn" or f"blocks.{layer}.mlp.hook_post" in self.cache

    # The decomposition.

    def output(self, layer: int, sublayer: str, position: int) -> Tensor:
        """What TransformerLens cached as entering the residual stream."""
        return self.cache[f"blocks.{layer}.hook_{sublayer}_out"][position]

    def residual(self, layer: int, sublayer: str, position: int) -> Tensor:
        """The residual stream that a sublayer reads."""
        pre = self.cache[f"blocks.{layer}.hook_resid_pre"][position]
        if sublayer == "attn" or self.family in PARALLEL:
            return pre
        return pre + self.output(layer, "attn", position)

    def final(self, position: int) -> Tensor:
        return self.cache[f"blocks.{self.n_layers - 1}.hook_resid_post"][position]

    def _raw(self, layer: int, sublayer: str, position: int) -> dict[str, Tensor]:
        """The finest parts of a sublayer's own output, before what stands behind it."""
        rows = self._maps[layer, sublayer].matrix
        if sublayer == "mlp":
            m = self.cache[f"blocks.{layer}.mlp.hook_post"][position]
            return {f"L{layer}N{n}": m[n] * rows[n] for n in range(len(m))}
        pattern = self.cache[f"blocks.{layer}.attn.hook_pattern"][:, position]  # [head, source]
        v = self.values(layer)
        n_heads, d_head = len(pattern), v.shape[2]
        parts = {}
        for p in range(position + 1):
            for h in range(n_heads):
                z = pattern[h, p] * v[p, h * v.shape[1] // n_heads]
                for i in range(d_head):
                    parts[f"L{layer}H{h}D{i}@{p}"] = z[i] * rows[h * d_head + i]
        return parts

    def values(self, layer: int) -> Tensor:
        """Values [source, key/value head, index]."""
        return self.cache[f"blocks.{layer}.attn.hook_v"]

    def constant(self, layer: int, sublayer: str, position: int) -> Tensor:
        """What a sublayer's own output has beside its parts: its bias."""
        return self._maps[layer, sublayer].bias

    def _carry(self, layer: int, sublayer: str, position: int, vectors: Tensor) -> Tensor:
        """Through a post-norm frozen at this run's scale, and a residual multiplier."""
        post = self._posts.get((layer, sublayer))
        if post is not None:
            whole = sum(self._raw(layer, sublayer, position).values()) + self.constant(layer, sublayer, position)
            vectors = vectors @ post.matrix / post.scale(whole[None])
        return vectors * (self.config.residual_multiplier if self.family in GRANITE else 1.0)

    def parts(self, unit: str, layer: int, position: int) -> dict[str, Tensor]:
        """label -> vector as it enters the residual stream; unit: head, head_position, attn_neuron, ffn_neuron."""
        sublayer = "mlp" if unit == "ffn_neuron" else "attn"
        raw = self._raw(layer, sublayer, position)
        if unit in ("head", "head_position"):
            sums: dict[str, Tensor] = {}
            for label, vector in raw.items():
                head, rest = label.split("D")
                name = head if unit == "head" else f"{head}@{rest.split('@')[1]}"
                sums[name] = sums.get(name, torch.zeros(self.d_model, dtype=torch.float64)) + vector
            raw = sums
        return dict(zip(raw, self._carry(layer, sublayer, position, torch.stack(list(raw.values()))), strict=True))

    def bias(self, layer: int, sublayer: str, position: int) -> Tensor:
        """The constant part of what enters the residual stream."""
        carried = self._carry(layer, sublayer, position, self.constant(layer, sublayer, position)[None])[0]
        post = self._posts.get((layer, sublayer))
        return carried if post is None else carried + post.bias

    # The readout.

    def log_probs(self, x: Tensor, position: int, scale: str) -> Tensor:
        """Log-probabilities [n, vocab] of residual streams x [n, d_model]; frozen: at the run's scale at `position`."""
        norm = self.final_norm
        if norm is None:
            y = x
        elif scale == "frozen":
            y = x @ norm.matrix / norm.scale(self.final(position)[None]) + norm.bias
        else:
            y = call(norm.module, x)
        logits = call(self.model.unembed, y) * self.factor
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits.log_softmax(-1)

    def increases(self, unit: str, position: int, target: int, scale: str) -> dict[str, tuple[float, float]]:
        """label -> (log-probability increase, probability increase), for all layers in order."""
        found: dict[str, tuple[float, float]] = {}
        for (layer, sublayer), _ in sorted(self._maps.items()):
            if unit == "sublayer":
                parts = {f"{layer}_{sublayer}_out": self.output(layer, sublayer, position)}
            elif (unit == "ffn_neuron") == (sublayer == "mlp"):
                parts = self.parts(unit, layer, position)
            else:
                continue
            x = self.residual(layer, sublayer, position)
            before = self.log_probs(x[None], position, scale)[0, target]
            after = self.log_probs(x + torch.stack(list(parts.values())), position, scale)[:, target]
            both = torch.stack([after - before, after.exp() - before.exp()], 1).tolist()
            found.update({label: (row[0], row[1]) for label, row in zip(parts, both, strict=True)})
        return found
