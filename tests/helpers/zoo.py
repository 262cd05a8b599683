"""Tiny random models of every family that the tests walk over, made in memory.

Every parameter is drawn at random (norm gains and biases too, so that a forgotten gain or bias cannot hide behind
ones and zeros). The configurations are in `families` and `further_families`.
"""

import atexit
import contextlib
import functools
import importlib.util
import shutil
import tempfile
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import tl_subvalues as tlsv
from helpers.families import DENSE, HYBRIDS, MIXTURES, VOCAB
from helpers.further_families import FURTHER, FURTHER_HEADS_ONLY, FURTHER_REFUSED, NOT_LOADED, REFUSED

# What `make test-fast` walks over: layer and RMS norms, grouped queries, gates, post-norms, a soft cap, parallel
# blocks, multipliers, experts, mixers.
QUICK = {"gpt2", "llama", "gemma2", "gpt_neox_parallel", "granite", "mixtral", "lfm2"}
FAMILIES = {**DENSE, **MIXTURES, **HYBRIDS, **REFUSED, **FURTHER, **FURTHER_HEADS_ONLY, **FURTHER_REFUSED, **NOT_LOADED}


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
    config_name, arguments, model_name = FAMILIES[family]
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


def converted(family: str, seed: int, dtype: torch.dtype, **overrides: Any) -> Any:
    """The same model as TransformerLens 2 converts it from a folder; skipped where it does not, or not rightly."""
    if (family, dtype) in NOT_CONVERTED:
        pytest.skip(NOT_CONVERTED[family, dtype])
    try:
        made = hf_model(family, seed, dtype, **overrides)
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


def model(
    family: str, *, seed: int = 0, compatibility: bool = False, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Any:
    """The same model as this TransformerLens loads it: a TransformerBridge, or a HookedTransformer on release 2."""
    if has_bridge() or compatibility:
        return bridge(family, seed=seed, compatibility=compatibility, dtype=dtype, **overrides)
    return converted(family, seed, dtype, **overrides)


def encoder_decoder(name: str) -> Any:
    """A T5 or Bart as a bridge: it has no single residual stream, and is refused."""
    sizes = {
        "T5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        "Bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
        | {
            f"{side}_{what}": n
            for side in ("encoder", "decoder")
            for what, n in (("attention_heads", 4), ("ffn_dim", 48))
        },
    }[name]
    ids = {
        "vocab_size": VOCAB,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "decoder_start_token_id": 0,
    }
    config = getattr(transformers, f"{name}Config")(**sizes, **ids)
    config.architectures = [f"{name}ForConditionalGeneration"]
    hf = getattr(transformers, config.architectures[0])._from_config(config, attn_implementation="eager").eval()
    return bridge_class().boot_transformers(name.lower(), hf_model=hf, tokenizer=tokenizer(), device="cpu")


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


def slow(*names: str) -> list[Any]:
    """Parameters that `make test-fast` leaves out."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def every_model() -> list[Any]:
    """Parameters (name, in compatibility mode): every dense family in both modes, and every HookedTransformer."""
    modes = ((False, "default"), (True, "compat"))
    bridges = [pytest.param((family, mode), id=f"{family}-{name}") for family in DENSE for mode, name in modes]
    hooked = [pytest.param((name, False), id=f"hooked-{name}", marks=pytest.mark.hooked) for name in HOOKED]
    return bridges + hooked
