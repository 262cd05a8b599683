"""A HookedTransformer from a local folder on TransformerLens 2, whose `from_pretrained` takes known names only.

Its own conversions are used, and what they made is compared with Hugging Face's model: they guess sizes from names,
leave out biases that a layout does not usually have, and read no base of rotary positions for Llama.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from tl_subvalues.errors import UnsupportedModelError

# Each layer holds a mask of the square of this: 4 MB. TransformerLens cuts Llama 3 at the same length.
_LONGEST = 2048
# Nats. In float32, 3e-5 was seen on SmolLM2; half precision rounds every activation of both runs on its own.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_HALF_PRECISION = 0.5


def hooked_from_folder(hooked: Any, folder: Path, *, device: Any, dtype: torch.dtype) -> Any:
    """A HookedTransformer of the model in a folder of Hugging Face's layout, unprocessed, in evaluation mode.

    Raises:
        UnsupportedModelError: if TransformerLens does not convert this architecture, or converts it wrongly.
        OSError: Hugging Face's own, for a folder that it cannot load.
    """
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rotary = _rotary(hf_model.config, folder)
    architecture = type(hf_model).__name__
    try:
        with tempfile.TemporaryDirectory() as scratch:
            # A folder of another name, for "llama" and its like anywhere in a path is taken for a published model's.
            if hf_model.config.model_type == "gpt2":
                hf_model.config.n_ctx = hf_model.config.n_positions  # read by its older name
            hf_model.config.save_pretrained(scratch)
            cfg = loading.get_pretrained_model_config(scratch, device=device, dtype=dtype)
            state = loading.get_pretrained_state_dict(scratch, cfg, hf_model, dtype=dtype)
        cfg.model_name, cfg.tokenizer_name = folder.resolve().name, str(folder)
        cfg.n_ctx = cfg.n_ctx if cfg.positional_embedding_type == "standard" else min(cfg.n_ctx, _LONGEST)
        for name, value in rotary.items():
            setattr(cfg, name, value)
        model = hooked(cfg, tokenizer, move_to_device=False)
        model.load_state_dict(state, strict=False)
    except (
        ValueError,
        KeyError,
        NameError,
        AttributeError,
        AssertionError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise UnsupportedModelError(
            f"{folder}: TransformerLens 2 does not convert this {architecture} to a HookedTransformer "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}); "
            "use TransformerLens 3 or newer, whose TransformerBridge runs Hugging Face's own modules."
        ) from error
    model.move_model_modules_to_device()
    _require_same(model.eval(), hf_model, folder, architecture)
    return model


def _rotary(config: Any, folder: Path) -> dict[str, Any]:
    """HookedTransformer's settings of rotary positions, for what its conversions leave at their defaults."""
    base, scaling = getattr(config, "rope_theta", None), getattr(config, "rope_scaling", None) or {}
    newer = getattr(config, "rope_parameters", None)
    if isinstance(newer, dict) and newer.get("rope_theta", base) != base:
        raise UnsupportedModelError(
            f"{folder}: was saved by transformers 5, whose rope_parameters this transformers overlooks; load it with "
            "transformers 5 and TransformerLens 3 or newer."
        )
    settings: dict[str, Any] = {} if base is None else {"rotary_base": int(base)}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "llama3":
        settings |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": scaling["factor"],
            "NTK_by_parts_low_freq_factor": scaling["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": scaling["high_freq_factor"],
            "NTK_original_ctx_len": scaling["original_max_position_embeddings"],
        }
    elif kind != "default":
        raise UnsupportedModelError(
            f"{folder}: HookedTransformer has no rotary positions of the kind {kind!r}; use TransformerLens 3 or newer."
        )
    return settings


@torch.no_grad()
def _require_same(model: Any, hf_model: Any, folder: Path, architecture: str) -> None:
    """Refuse a conversion whose log-probabilities are not Hugging Face's, on words spread over the vocabulary."""
    size = hf_model.get_input_embeddings().num_embeddings
    tokens = (torch.arange(1, 33) * 7919 % size)[None]
    try:
        theirs = hf_model(tokens).logits.float().log_softmax(-1)
        ours = model(tokens.to(model.cfg.device)).float().log_softmax(-1).to(theirs.device)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"{folder}: this {architecture}, or what TransformerLens 2 makes of it, does not run in {hf_model.dtype} "
            f"({error}); use TransformerLens 3 or newer, whose TransformerBridge runs Hugging Face's own modules."
        ) from error
    tolerance = _TOLERANCE.get(hf_model.dtype, _HALF_PRECISION)
    # Where many words are all but impossible, their log-probabilities round more.
    worst = float("inf") if ours.shape != theirs.shape else float(((ours - theirs).abs() * theirs.exp().sqrt()).max())
    if not worst <= tolerance:
        raise UnsupportedModelError(
            f"{folder}: what TransformerLens 2 makes of this {architecture} is off Hugging Face's model by {worst:.1e} "
            "nats; use TransformerLens 3 or newer, whose TransformerBridge runs Hugging Face's own modules."
        )
