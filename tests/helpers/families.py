"""Families of architectures, as tiny Hugging Face configurations: two layers, width 32, a vocabulary of 61 words.

A family is (configuration class, its arguments, class of the model); `zoo` makes models of them.
"""

from typing import Any

VOCAB = 61
LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GPT2_LIKE = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# MHA: as many key/value heads as query heads.
MHA = {**LLAMA_LIKE, "num_key_value_heads": 4}
NEOX_LIKE = {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"}
BLOOM_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
FALCON_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 64,
}
OPT_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

# family -> (Hugging Face configuration class, its arguments, class of the model, what the name is called)
DENSE: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2Config", GPT2_LIKE, "GPT2LMHeadModel"),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT2_LIKE, "GPTBigCodeForCausalLM"),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 48,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        "GPTNeoForCausalLM",
    ),
    "gpt_neox_parallel": ("GPTNeoXConfig", {**NEOX_LIKE, "use_parallel_residual": True}, "GPTNeoXForCausalLM"),
    "gpt_neox_sequential": ("GPTNeoXConfig", {**NEOX_LIKE, "use_parallel_residual": False}, "GPTNeoXForCausalLM"),
    "gptj": ("GPTJConfig", {**GPT2_LIKE, "rotary_dim": 4}, "GPTJForCausalLM"),
    "codegen": ("CodeGenConfig", {**GPT2_LIKE, "rotary_dim": 4}, "CodeGenForCausalLM"),
    "opt": ("OPTConfig", OPT_LIKE, "OPTForCausalLM"),
    "xglm": (
        "XGLMConfig",
        {
            "vocab_size": VOCAB,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        "XGLMForCausalLM",
    ),
    "bloom": ("BloomConfig", BLOOM_LIKE, "BloomForCausalLM"),
    "mpt": (
        "MptConfig",
        {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
        "MptForCausalLM",
    ),
    "falcon_multi_query": (
        "FalconConfig",
        {**FALCON_LIKE, "multi_query": True, "parallel_attn": True, "bias": False, "new_decoder_architecture": False},
        "FalconForCausalLM",
    ),
    "falcon_alibi": (
        "FalconConfig",
        {
            **FALCON_LIKE,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "alibi": True,
            "new_decoder_architecture": False,
        },
        "FalconForCausalLM",
    ),
    "phi": ("PhiConfig", MHA, "PhiForCausalLM"),
    "phi3": ("Phi3Config", LLAMA_LIKE, "Phi3ForCausalLM"),
    "llama": ("LlamaConfig", LLAMA_LIKE, "LlamaForCausalLM"),
    "llama_biased_tied": (
        "LlamaConfig",
        {**LLAMA_LIKE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        "LlamaForCausalLM",
    ),
    "llama_wide_heads": ("LlamaConfig", {**LLAMA_LIKE, "head_dim": 16}, "LlamaForCausalLM"),
    "arcee": ("ArceeConfig", LLAMA_LIKE, "ArceeForCausalLM"),
    "mistral": ("MistralConfig", LLAMA_LIKE, "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", LLAMA_LIKE, "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", {**LLAMA_LIKE, "head_dim": 8}, "Qwen3ForCausalLM"),
    "smollm3": ("SmolLM3Config", LLAMA_LIKE, "SmolLM3ForCausalLM"),
    "seed_oss": ("SeedOssConfig", {**LLAMA_LIKE, "head_dim": 8}, "SeedOssForCausalLM"),
    "gemma": ("GemmaConfig", {**LLAMA_LIKE, "head_dim": 8}, "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8}, "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", {**LLAMA_LIKE, "head_dim": 8, "query_pre_attn_scalar": 8}, "Gemma3ForCausalLM"),
    "starcoder2": ("Starcoder2Config", {**LLAMA_LIKE, "use_bias": True}, "Starcoder2ForCausalLM"),
    "stablelm": (
        "StableLmConfig",
        {**LLAMA_LIKE, "use_qkv_bias": True, "use_parallel_residual": False},
        "StableLmForCausalLM",
    ),
    "stablelm_parallel": (
        "StableLmConfig",
        {**LLAMA_LIKE, "use_qkv_bias": False, "qk_layernorm": True, "use_parallel_residual": True},
        "StableLmForCausalLM",
    ),
    "cohere": ("CohereConfig", {**LLAMA_LIKE, "logit_scale": 0.25}, "CohereForCausalLM"),
    "cohere2": ("Cohere2Config", {**LLAMA_LIKE, "head_dim": 8, "logit_scale": 0.25}, "Cohere2ForCausalLM"),
    "granite": (
        "GraniteConfig",
        {
            **LLAMA_LIKE,
            "residual_multiplier": 0.4,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.5,
            "attention_multiplier": 0.2,
        },
        "GraniteForCausalLM",
    ),
    "glm": ("GlmConfig", {**LLAMA_LIKE, "head_dim": 8}, "GlmForCausalLM"),
    "glm4": ("Glm4Config", {**LLAMA_LIKE, "head_dim": 8}, "Glm4ForCausalLM"),
    "ernie4_5": ("Ernie4_5Config", {**LLAMA_LIKE, "head_dim": 8}, "Ernie4_5ForCausalLM"),
    "hunyuan_dense": ("HunYuanDenseV1Config", {**LLAMA_LIKE, "head_dim": 8}, "HunYuanDenseV1ForCausalLM"),
    "exaone4": ("Exaone4Config", {**LLAMA_LIKE, "head_dim": 8}, "Exaone4ForCausalLM"),
    "nemotron": ("NemotronConfig", LLAMA_LIKE, "NemotronForCausalLM"),
    "apertus": ("ApertusConfig", LLAMA_LIKE, "ApertusForCausalLM"),
    "olmo": ("OlmoConfig", LLAMA_LIKE, "OlmoForCausalLM"),
    "olmo2": ("Olmo2Config", LLAMA_LIKE, "Olmo2ForCausalLM"),
    "olmo3": ("Olmo3Config", LLAMA_LIKE, "Olmo3ForCausalLM"),
}

# Mixtures of experts; those with a dense layer have it first.
ROUTED = {**LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {**LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    **MHA,
    "q_lora_rank": 8,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
MIXTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "mixtral": ("MixtralConfig", LOCAL, "MixtralForCausalLM"),
    "olmoe": ("OlmoeConfig", {**ROUTED, "norm_topk_prob": True}, "OlmoeForCausalLM"),
    "flex_olmo": ("FlexOlmoConfig", ROUTED, "FlexOlmoForCausalLM"),
    "qwen2_moe": ("Qwen2MoeConfig", {**ROUTED, "shared_expert_intermediate_size": 24}, "Qwen2MoeForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", {**ROUTED, "head_dim": 8, "mlp_only_layers": [0]}, "Qwen3MoeForCausalLM"),
    "phimoe": ("PhimoeConfig", {**LOCAL, "router_jitter_noise": 0.4}, "PhimoeForCausalLM"),
    "granitemoe": (
        "GraniteMoeConfig",
        {**LOCAL, "residual_multiplier": 0.4, "embedding_multiplier": 3.0, "logits_scaling": 2.5},
        "GraniteMoeForCausalLM",
    ),
    "gpt_oss": ("GptOssConfig", {**LOCAL, "head_dim": 8}, "GptOssForCausalLM"),
    "llama4": (
        "Llama4TextConfig",
        {**LOCAL, "head_dim": 8, "intermediate_size_mlp": 40, "moe_layers": [1]},
        "Llama4ForCausalLM",
    ),
    "deepseek_v2": ("DeepseekV2Config", {**LATENT, "topk_method": "greedy"}, "DeepseekV2ForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", {**LATENT, "n_group": 4, "topk_group": 2}, "DeepseekV3ForCausalLM"),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", {**LATENT, "n_group": 1, "topk_group": 1}, "Glm4MoeLiteForCausalLM"),
    "glm4_moe": (
        "Glm4MoeConfig",
        {**LLAMA_LIKE, **{k: v for k, v in LATENT.items() if "expert" in k or "moe" in k}, "head_dim": 8},
        "Glm4MoeForCausalLM",
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {
            **LLAMA_LIKE,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
            "moe_layer_interval": 1,
            "use_bias": True,
        },
        "Ernie4_5_MoeForCausalLM",
    ),
    "minimax_m2": ("MiniMaxM2Config", {**LOCAL, "head_dim": 8}, "MiniMaxM2ForCausalLM"),
}

# Attention in some layers, something else in the others (or, in Falcon H1, both in all of them).
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
HYBRIDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "lfm2": ("Lfm2Config", {**LLAMA_LIKE, "layer_types": ["conv", "full_attention"]}, "Lfm2ForCausalLM"),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        {**ROUTED, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"], "norm_topk_prob": True},
        "Lfm2MoeForCausalLM",
    ),
    "jamba": (
        "JambaConfig",
        {
            **LLAMA_LIKE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        "JambaForCausalLM",
    ),
    "bamba": (
        "BambaConfig",
        {
            **LLAMA_LIKE,
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 4,
            "mamba_n_groups": 1,
        },
        "BambaForCausalLM",
    ),
    "olmo_hybrid": ("OlmoHybridConfig", {**LLAMA_LIKE, **LINEAR}, "OlmoHybridForCausalLM"),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**ROUTED, **LINEAR, "head_dim": 8, "shared_expert_intermediate_size": 24},
        "Qwen3NextForCausalLM",
    ),
    "falcon_h1": (
        "FalconH1Config",
        {
            **LLAMA_LIKE,
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 4,
            "mamba_n_groups": 1,
        },
        "FalconH1ForCausalLM",
    ),
}
