"""Further families, briefly: each is decomposed exactly, by its sums and its readout, or refused by name."""

import re
from typing import Any

import pytest
import torch
import zoo
from test_families import SUM_TOLERANCE, TARGET, relative_error

import tl_subvalues as tlsv

LLAMA = zoo.LLAMA_LIKE
FALCON_NEW = {**zoo.FALCON_LIKE, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}
# family -> configuration class, its arguments, class of the model
EXACT: dict[str, tuple[str, dict[str, Any], str]] = {
    "vaultgemma": ("VaultGemmaConfig", {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8}, "VaultGemmaForCausalLM"),
    "jais2": ("Jais2Config", LLAMA, "Jais2ForCausalLM"),
    "nanochat": ("NanoChatConfig", LLAMA, "NanoChatForCausalLM"),
    "ministral3": ("Ministral3Config", LLAMA, "Ministral3ForCausalLM"),
    "youtu": ("YoutuConfig", zoo.LATENT, "YoutuForCausalLM"),
    "falcon_grouped": ("FalconConfig", {**FALCON_NEW, "multi_query": False}, "FalconForCausalLM"),
    "deepseek_v2_lite": (
        "DeepseekV2Config",
        {**zoo.LATENT, "q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        "DeepseekV2ForCausalLM",
    ),
    "olmoe_unnormed": ("OlmoeConfig", {**zoo.ROUTED, "norm_topk_prob": False}, "OlmoeForCausalLM"),
}
# The same, but for source positions: something acts on attention's z after the mixing.
HEADS_ONLY: dict[str, tuple[str, dict[str, Any], str]] = {
    "bitnet": ("BitNetConfig", LLAMA, "BitNetForCausalLM"),
    "afmoe": (
        "AfmoeConfig",
        {
            **zoo.ROUTED,
            "head_dim": 8,
            "num_dense_layers": 1,
            "num_shared_experts": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "AfmoeForCausalLM",
    ),
    "laguna": (
        "LagunaConfig",
        {**zoo.ROUTED, "head_dim": 8, "shared_expert_intermediate_size": 24, "moe_routed_scaling_factor": 1.7},
        "LagunaForCausalLM",
    ),
    "qwen3_5": ("Qwen3_5TextConfig", {**LLAMA, **zoo.LINEAR, "head_dim": 8}, "Qwen3_5ForCausalLM"),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "opt_350m": (
        "OPTConfig",
        {**zoo.OPT_LIKE, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "OPTForCausalLM",
        "project_out",
    ),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": zoo.VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        "Mamba2ForCausalLM",
        "no attention sublayer",
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {
            **LLAMA,
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 4,
            "n_groups": 1,
        },
        "NemotronHForCausalLM",
        "no attention sublayer",
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 16,
        },
        "RecurrentGemmaForCausalLM",
        "no attention sublayer",
    ),
    "jetmoe": (
        "JetMoeConfig",
        {
            "vocab_size": zoo.VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "kv_channels": 8,
            "intermediate_size": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        "JetMoeForCausalLM",
        "such as a mixture of heads",
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **LLAMA,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_state": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "position_embedding_type": "rope",
        },
        "GraniteMoeHybridForCausalLM",
        "shared_mlp, moe",
    ),
}


def build(kind: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(zoo.MIXTURES, "further", kind[:3])
    return zoo.bridge("further")


@pytest.mark.parametrize("family", [*EXACT, *HEADS_ONLY])
def test_a_further_family_is_exact(family, tokens, monkeypatch):
    """Parts and biases sum to every sublayer's output at every position; the trace's own checks pass."""
    model = build({**EXACT, **HEADS_ONLY}[family], monkeypatch)
    trace = tlsv.trace(model, tokens, TARGET)
    own = model(tokens)[0, -1].log_softmax(-1)[TARGET]
    assert trace.log_prob == pytest.approx(float(own), abs=1e-4)
    assert len(trace.heads()) > 0
    assert trace.ffn_neurons(top=None).log_prob_increase.notna().all()
    if family in HEADS_ONLY:
        with pytest.raises(tlsv.UnsupportedModelError, match="by source position"):
            trace.head_positions()
    else:
        assert len(trace.head_positions()) > 0
    kinds = ["head"] if family in HEADS_ONLY else ["head", "head_position", "neuron"]
    for layer in range(len(model.blocks)):
        stack = tlsv.ffn_subvalues(model, trace.cache, layer, pos_slice=None, incl_bias=True)
        assert relative_error(stack.sum(0), trace.cache[f"blocks.{layer}.hook_mlp_out"].double()) < SUM_TOLERANCE
        for by in kinds if "attn" in model.blocks[layer]._modules else []:
            stack = tlsv.attn_subvalues(model, trace.cache, layer, by=by, pos_slice=None, incl_bias=True)
            assert relative_error(stack.sum(0), trace.cache[f"blocks.{layer}.hook_attn_out"].double()) < SUM_TOLERANCE


@pytest.mark.parametrize("family", list(REFUSED))
def test_a_further_family_is_refused_by_name(family, tokens, monkeypatch):
    """The message names the architecture and the reason."""
    model = build(REFUSED[family], monkeypatch)
    with pytest.raises(tlsv.UnsupportedModelError, match=re.escape(REFUSED[family][3])) as caught:
        tlsv.trace(model, tokens, TARGET)
    assert REFUSED[family][2] in str(caught.value)


def test_half_precision_runs_of_all_mixtures_are_routed_alike(tokens):
    """In bfloat16, where routers' logits often tie, no family's routing differs from the run's."""
    for family in zoo.MIXTURES:
        model = zoo.bridge(family, dtype=torch.bfloat16)
        for seed in range(3):
            prompt = torch.randint(3, zoo.VOCAB, (1, 20), generator=torch.Generator().manual_seed(seed))
            tlsv.trace(model, prompt, TARGET, position=5 * seed)
