"""Families that the package refuses, in whole or in part, and those that are tested briefly; as in `families`."""

from typing import Any

from helpers.families import FALCON_LIKE, LATENT, LINEAR, LLAMA_LIKE, MHA, OPT_LIKE, ROUTED, VOCAB

# What the package refuses, in whole or in part; test_refusals.py says what each raises.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "openai_gpt": (
        "OpenAIGPTConfig",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "OpenAIGPTLMHeadModel",
    ),
    "modernbert_decoder": (
        "ModernBertDecoderConfig",
        {**{k: v for k, v in MHA.items() if k != "num_key_value_heads"}, "cls_token_id": 0, "sep_token_id": 1},
        "ModernBertDecoderForCausalLM",
    ),
    "mamba": (
        "MambaConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        "MambaForCausalLM",
    ),
    "opt_post_norm": ("OPTConfig", {**OPT_LIKE, "do_layer_norm_before": False}, "OPTForCausalLM"),
    "opt_projected": ("OPTConfig", {**OPT_LIKE, "word_embed_proj_dim": 16}, "OPTForCausalLM"),
    "gemma4": ("Gemma4TextConfig", {**LLAMA_LIKE, "head_dim": 8}, "Gemma4ForCausalLM"),
    "rwkv": (
        "RwkvConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "context_length": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        "RwkvForCausalLM",
    ),
}

FALCON_NEW = {**FALCON_LIKE, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}
# What is decomposed exactly, and tested briefly.
FURTHER: dict[str, tuple[str, dict[str, Any], str]] = {
    "vaultgemma": (
        "VaultGemmaConfig",
        {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8},
        "VaultGemmaForCausalLM",
    ),
    "jais2": ("Jais2Config", LLAMA_LIKE, "Jais2ForCausalLM"),
    "nanochat": ("NanoChatConfig", LLAMA_LIKE, "NanoChatForCausalLM"),
    "ministral3": ("Ministral3Config", LLAMA_LIKE, "Ministral3ForCausalLM"),
    "youtu": ("YoutuConfig", LATENT, "YoutuForCausalLM"),
    "falcon_grouped": ("FalconConfig", {**FALCON_NEW, "multi_query": False}, "FalconForCausalLM"),
    "deepseek_v2_lite": (
        "DeepseekV2Config",
        {**LATENT, "q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        "DeepseekV2ForCausalLM",
    ),
    "olmoe_unnormed": ("OlmoeConfig", {**ROUTED, "norm_topk_prob": False}, "OlmoeForCausalLM"),
}
# The same, but for source positions: something acts on attention's z after the mixing.
FURTHER_HEADS_ONLY: dict[str, tuple[str, dict[str, Any], str]] = {
    "bitnet": ("BitNetConfig", LLAMA_LIKE, "BitNetForCausalLM"),
    "afmoe": (
        "AfmoeConfig",
        {
            **ROUTED,
            "head_dim": 8,
            "num_dense_layers": 1,
            "num_shared_experts": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "AfmoeForCausalLM",
    ),
    "laguna": (
        "LagunaConfig",
        {**ROUTED, "head_dim": 8, "shared_expert_intermediate_size": 24, "moe_routed_scaling_factor": 1.7},
        "LagunaForCausalLM",
    ),
    "qwen3_5": ("Qwen3_5TextConfig", {**LLAMA_LIKE, **LINEAR, "head_dim": 8}, "Qwen3_5ForCausalLM"),
}
# What is refused when it is loaded, for TransformerLens would fail on it; test_edited_runs.py has the way out.
NOT_LOADED: dict[str, tuple[str, dict[str, Any], str]] = {
    "falcon_grouped_multi_query": ("FalconConfig", {**FALCON_NEW, "multi_query": True}, "FalconForCausalLM"),
}
# What is refused by name; test_more_families.py has the reasons.
FURTHER_REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "opt_350m": (
        "OPTConfig",
        {**OPT_LIKE, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "OPTForCausalLM",
    ),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": VOCAB,
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
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {
            **LLAMA_LIKE,
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 4,
            "n_groups": 1,
        },
        "NemotronHForCausalLM",
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {
            **LLAMA_LIKE,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 16,
        },
        "RecurrentGemmaForCausalLM",
    ),
    "jetmoe": (
        "JetMoeConfig",
        {
            "vocab_size": VOCAB,
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
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **LLAMA_LIKE,
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
    ),
}
