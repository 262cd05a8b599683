"""Baevski & Auli's language model in torch, in Hugging Face's form: adaptive input, blocks, adaptive softmax.

Word vectors stay factored (word times projection, band by band), and are shared by input and output as fairseq's
`tie_adaptive_weights` shares them. The model's `logits` are the log-probabilities of its adaptive softmax, so that
their log-softmax is the model's distribution. There is no final norm.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from tl_subvalues.baevski18.adaptive import AdaptiveInput, AdaptiveSoftmax
from tl_subvalues.baevski18.configuration import Baevski18Config

ARCHITECTURE = "Baevski18ForCausalLM"
PAD_ID, EOS_ID = 1, 2
_BOS_IDS = {"<s>": 0, "</s>": EOS_ID}

Hook = Callable[[Tensor], Tensor]


class HFConfig(PretrainedConfig):
    """The same sizes by Hugging Face's names, which TransformerLens reads."""

    model_type = "baevski18"

    def __init__(self, shape: Baevski18Config | None = None, **kwargs: Any) -> None:
        self.shape = shape or Baevski18Config()
        sizes = {
            "hidden_size": self.shape.d_model,
            "num_hidden_layers": self.shape.n_layers,
            "num_attention_heads": self.shape.n_heads,
            "intermediate_size": self.shape.d_mlp,
            "vocab_size": self.shape.d_vocab,
            "max_position_embeddings": self.shape.n_ctx,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "bos_token_id": _BOS_IDS[self.shape.bos_token],
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
            "tie_word_embeddings": False,  # tied band by band, by this module itself
            "architectures": [ARCHITECTURE],
        }
        super().__init__(**{**sizes, **kwargs})
        for name, value in sizes.items():
            setattr(self, name, value)


class SinusoidalPositions(nn.Module):
    """Sines and cosines; position p of a text without padding has row p + 2, padding row 1, which is zero."""

    table: Tensor

    def __init__(self, shape: Baevski18Config) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("table", sinusoids(shape.n_ctx + PAD_ID + 1, shape.d_model), persistent=False)

    def reset(self, device: Any = None, dtype: torch.dtype = torch.float32) -> None:
        """Compute the table anew (a model made on the meta device has none)."""
        self.table = sinusoids(self.shape.n_ctx + PAD_ID + 1, self.shape.d_model).to(device=device, dtype=dtype)

    def forward(self, rows: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The chosen rows; a text longer than the table goes on along the same waves, as in fairseq."""
        needed = int(rows.max()) + 1 if rows.numel() else 0
        table = self.table if needed <= len(self.table) else sinusoids(needed, self.shape.d_model).to(self.table)
        return table[rows]

    @property
    def weight(self) -> Float[Tensor, "n_ctx d_model"]:
        """What is added at each position of a text without padding."""
        return self.table[PAD_ID + 1 :]


def sinusoids(n_rows: int, d_model: int) -> Float[Tensor, "n_rows d_model"]:
    """All sines, then all cosines, in float32 as fairseq computes them (2.2e-4 from exact angles at row 3073)."""
    half = d_model // 2
    with torch.device("cpu"):
        rates = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / max(half - 1, 1)))
        angles = torch.arange(n_rows, dtype=torch.float)[:, None] * rates[None]
        table = torch.cat([angles.sin(), angles.cos(), torch.zeros(n_rows, d_model % 2)], 1)
    table[PAD_ID] = 0
    return table


class SelfAttention(nn.Module):
    """Causal self-attention; the two hooks are called on scores and pattern, and what they return is used."""

    def __init__(self, shape: Baevski18Config, layer: int) -> None:
        super().__init__()
        self.layer_idx, self.n_heads, self.d_head = layer, shape.n_heads, shape.d_head
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(shape.d_model, shape.d_model) for _ in range(4)
        )

    def forward(
        self,
        hidden_states: Float[Tensor, "batch query d_model"],
        allowed: Bool[Tensor, "batch query key"],
        past: Any = None,
        on_scores: Hook | None = None,
        on_pattern: Hook | None = None,
    ) -> tuple[Float[Tensor, "batch query d_model"], Float[Tensor, "batch head query key"]]:
        """The output and the pattern."""
        q, k, v = (self._heads(f(hidden_states)) for f in (self.q_proj, self.k_proj, self.v_proj))
        if past is not None:
            k, v = past.update(k, v, self.layer_idx)
        scores = (q / math.sqrt(self.d_head)) @ k.transpose(-2, -1)
        scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        scores = on_scores(scores) if on_scores else scores
        pattern = scores.softmax(-1)
        pattern = on_pattern(pattern) if on_pattern else pattern
        mixed = (pattern @ v).transpose(1, 2).flatten(2)
        return self.out_proj(mixed), pattern

    def _heads(self, x: Tensor) -> Float[Tensor, "batch head pos d_head"]:
        return x.unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2)


class FeedForward(nn.Module):
    """fc2(relu(fc1(x)))."""

    def __init__(self, shape: Baevski18Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(shape.d_model, shape.d_mlp)
        self.act = nn.ReLU()  # by the name under which the model view looks for it
        self.fc2 = nn.Linear(shape.d_mlp, shape.d_model)

    def forward(self, hidden_states: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """The sublayer's output."""
        return self.fc2(self.act(self.fc1(hidden_states)))


class Block(nn.Module):
    """x += Attention(LN(x)); x += FeedForward(LN(x)). `final_layer_norm` is the block's second, not a last one."""

    def __init__(self, shape: Baevski18Config, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(shape, layer)
        self.self_attn_layer_norm = nn.LayerNorm(shape.d_model, eps=1e-5)
        self.mlp = FeedForward(shape)
        self.final_layer_norm = nn.LayerNorm(shape.d_model, eps=1e-5)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch query d_model"],
        allowed: Bool[Tensor, "batch query key"],
        past: Any = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch query d_model"]]:
        """The residual stream after the block, as a tuple of one."""
        attended, _ = self.self_attn(self.self_attn_layer_norm(hidden_states), allowed=allowed, past=past)
        hidden_states = hidden_states + attended
        return (hidden_states + self.mlp(self.final_layer_norm(hidden_states)),)


class Baevski18ForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model. Its logits are log-probabilities."""

    config_class = HFConfig

    def __init__(self, config: HFConfig) -> None:
        super().__init__(config)
        shape = config.shape
        self.embed_tokens = AdaptiveInput(shape)
        self.embed_positions = SinusoidalPositions(shape)
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layers))
        self.lm_head = AdaptiveSoftmax(shape, self.embed_tokens)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass: token ids [batch, pos] in, log-probabilities [batch, pos, vocab] out.

        Padding (id 1, or 0 in `attention_mask`) is not attended to and does not count as a position.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("either input_ids or inputs_embeds is needed, and not both.")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        before = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        real = real_tokens(hidden.shape[0], hidden.shape[1], before, input_ids, attention_mask).to(hidden.device)
        rows = PAD_ID + real.cumsum(-1)[:, before:] if position_ids is None else PAD_ID + 1 + position_ids
        rows = rows.masked_fill(~real[:, before:], PAD_ID)
        hidden = hidden + self.embed_positions(rows)
        keys = torch.arange(real.shape[1], device=hidden.device)
        queries = keys[before:, None]
        allowed = (keys <= queries) & (real[:, None] | (keys == queries))
        for layer in self.layers:
            (hidden,) = layer(hidden, allowed=allowed, past=past_key_values)
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=past_key_values)


def real_tokens(
    batch: int, n_new: int, before: int, ids: Tensor | None, mask: Tensor | None
) -> Bool[Tensor, "batch before_and_new"]:
    """Which tokens, cached ones first, are no padding: by their ids, and by a mask [batch, pos] where there is one."""
    real = torch.ones(batch, before + n_new, dtype=torch.bool, device=None if ids is None else ids.device)
    if ids is not None:
        real[:, before:] &= ids != PAD_ID
    if mask is None:
        return real
    if mask.ndim != 2 or mask.shape[1] not in (n_new, before + n_new):
        raise ValueError(f"attention_mask is [batch, {before + n_new}], got {tuple(mask.shape)}.")
    real[:, -mask.shape[1] :] &= mask.bool()
    return real
