"""Tiny random models of every family that the tests walk over, made in memory.

Two layers, width 32, a vocabulary of 61 words, every parameter drawn at random (norm gains and
biases too, so that a forgotten gain or bias cannot hide behind ones and zeros).
"""

import atexit
import contextlib
import functools
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import tl_subvalues as tlsv

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

# What the package refuses, in whole or in part; see test_refusals.py for what each raises.
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


@functools.cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words `w0` … `w60`, split at white space; `w0` opens a text, `w1` ends and pads one."""
    words = {f"w{i}": i for i in range(VOCAB)}
    model = Tokenizer(WordLevel(words, unk_token="w2"))
    model.pre_tokenizer = WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="w0", eos_token="w1", pad_token="w1", unk_token="w2"
    )
    # TransformerLens reads the tokenizer a second time, from the folder it came from.
    folder = tempfile.mkdtemp(prefix="tl-subvalues-words-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def randomise(module: torch.nn.Module, seed: int, std: float = 0.3) -> None:
    """Draw every parameter and every bias anew; gains end up around one (or around zero where 1 + w is used)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise + 1.0 if is_gain else noise)
        for name, buffer in module.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")):  # routers keep these
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * std)


def hf_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A Hugging Face model of `family`, every parameter random, in evaluation mode."""
    config_name, arguments, model_name = {**DENSE, **MIXTURES, **HYBRIDS, **REFUSED}[family]
    config = getattr(transformers, config_name)(**{**arguments, **overrides})
    # TransformerLens knows PhiMoE by the spelling of its checkpoint.
    config.architectures = ["PhiMoEForCausalLM" if family == "phimoe" else model_name]
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)._from_config(config, attn_implementation="eager")
    randomise(model, seed)
    if getattr(config, "tie_word_embeddings", False):
        model.tie_weights()
    if dtype == torch.float64 and family in MIXTURES:
        model.set_experts_implementation("eager")  # torch's grouped product has no float64
    return model.to(dtype).eval()


def has_hooked_transformer() -> bool:
    """Whether this TransformerLens still has HookedTransformer (release 4 raises an ImportError)."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def has_bridge() -> bool:
    """Whether this TransformerLens has TransformerBridge (release 2 has not)."""
    return importlib.util.find_spec("transformer_lens.model_bridge") is not None


def bridge_class() -> Any:
    """TransformerBridge; whatever asks for it is skipped on a release without it (TransformerLens 2)."""
    return pytest.importorskip("transformer_lens.model_bridge", exc_type=ImportError).TransformerBridge


def bridge(
    family: str, *, seed: int = 0, compatibility: bool = False, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Any:
    """The same model as a TransformerBridge, raw or in compatibility mode."""
    model = bridge_class().boot_transformers(
        family, hf_model=hf_model(family, seed, dtype, **overrides), tokenizer=tokenizer(), dtype=dtype, device="cpu"
    )
    if compatibility:
        with contextlib.redirect_stdout(None):
            model.enable_compatibility_mode()
    return model


# What TransformerLens 2 makes right HookedTransformers of (docs/models.md), in every dtype.
CONVERTED = {"bloom", "gpt2", "gpt_neox_parallel", "gptj", "llama", "mistral", "opt", "phi", "phi3", "qwen2", "qwen3"}
NOT_CONVERTED: dict[tuple[str, torch.dtype], str] = {}


def converted(family: str, seed: int, dtype: torch.dtype) -> Any:
    """The same model as TransformerLens 2 converts it from a folder; skipped where it does not, or not rightly."""
    if (family, dtype) in NOT_CONVERTED:
        pytest.skip(NOT_CONVERTED[family, dtype])
    try:
        made = hf_model(family, seed, dtype)
    except AttributeError as error:  # the oldest transformers lack some families
        if family in CONVERTED:
            raise
        pytest.skip(f"this transformers cannot make {family}: {error}")
    try:
        return from_folder(made, family, dtype)
    except tlsv.UnsupportedModelError as error:
        if family in CONVERTED:
            raise
        NOT_CONVERTED[family, dtype] = f"TransformerLens 2 does not convert {family}: {error}"
        pytest.skip(NOT_CONVERTED[family, dtype])


def from_folder(made: Any, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A Hugging Face model from a folder of that name, the way users load one."""
    with tempfile.TemporaryDirectory() as parent:
        folder = f"{parent}/{name}"
        made.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return tlsv.load_model(folder, device="cpu", dtype=dtype)


def model(family: str, *, seed: int = 0, compatibility: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """The same model as this TransformerLens loads it: a TransformerBridge, or a HookedTransformer on release 2."""
    if has_bridge() or compatibility:
        return bridge(family, seed=seed, compatibility=compatibility, dtype=dtype)
    return converted(family, seed, dtype)


HOOKED: dict[str, dict[str, Any]] = {
    "ln_gelu": {},
    "ln_pre_relu": {"normalization_type": "LNPre", "act_fn": "relu"},
    "rms": {"normalization_type": "RMS"},
    "rms_pre": {"normalization_type": "RMSPre"},
    "no_norm": {"normalization_type": None},
    "alibi": {"positional_embedding_type": "alibi"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "rotary_gated_grouped": {
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "gated_mlp": True,
        "act_fn": "silu",
        "n_key_value_heads": 2,
    },
    "parallel": {"parallel_attn_mlp": True},
    "attn_only": {"attn_only": True},
    "solu_ln": {"act_fn": "solu_ln"},
    "gemma2_like": {
        "normalization_type": "RMS",
        "use_normalization_before_and_after": True,
        "output_logits_soft_cap": 5.0,
        "gated_mlp": True,
        "act_fn": "gelu_new",
        "final_rms": True,
    },
}


def hooked(variant: str, seed: int = 0, **overrides: Any) -> Any:
    """A HookedTransformer of one of the `HOOKED` variants (TransformerLens 2 and 3)."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    arguments: dict[str, Any] = {
        "n_layers": 2,
        "d_model": 32,
        "d_head": 8,
        "n_heads": 4,
        "d_mlp": 48,
        "d_vocab": VOCAB,
        "n_ctx": 64,
        "act_fn": "gelu",
        "normalization_type": "LN",
        "device": "cpu",
    }
    model = HookedTransformer(
        HookedTransformerConfig(**{**arguments, **HOOKED[variant], **overrides}), tokenizer=tokenizer()
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(noise + 1.0 if name.endswith(".w") else noise)
    return model


Build = Callable[[], Any]
