"""What a GGUF file says of its model, and whether all of it is in the model that transformers makes of the file.

Transformers' reader takes what it knows: it passes over fields and tensors that it does not, and draws at random what
the file lacks. Here each is put in its place, or refused by name.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError, shown, told

# What the file says of the model and transformers' reader passes over: the configuration's own name for it.
_ALSO = {
    ".attn_logit_softcapping": "attn_logit_softcapping",
    ".final_logit_softcapping": "final_logit_softcapping",
    ".attention.key_length": "head_dim",
}
# Further such things, which would make another model: refused if they are there with another value than this.
_NEUTRAL = {
    ".attention.scale": 0.0,
    ".logit_scale": 1.0,
    ".embedding_scale": 1.0,
    ".residual_scale": 1.0,
    ".attention.max_alibi_bias": 0.0,
    ".attention.clamp_kqv": 0.0,
}
# Gemma's largest models scale attention by the width of a head of d_model, as llama.cpp knows by their layers.
_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}
_ROPE = "rope_freqs.weight"
# Llama 3's rotary positions (arXiv 2407.21783), the same in all its releases but for the factor.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_WAY_OUT = "convert its original with transformers to a folder, and name that"


class Described:
    """What a GGUF file says of itself, and how many numbers it holds; the file was found whole."""

    def __init__(self, fields: Mapping[str, Any], sizes: Mapping[str, int], rope: Tensor | None) -> None:
        """Args: fields, scalars by name; sizes, how many numbers each tensor has; rope, rotary factors if any."""
        self.fields, self.sizes, self.rope = fields, sizes, rope
        self.architecture = str(fields.get("general.architecture"))

    @classmethod
    def read(cls, path: Path) -> "Described":
        """Read the description.

        Raises:
            ValueError: for a file that is not whole.
        """
        from gguf import GGUFReader

        try:
            reader = GGUFReader(path)
            fields = {name: field.contents() for name, field in reader.fields.items() if len(field.data) <= 1}
            sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
            rope = [torch.tensor(tensor.data).float() for tensor in reader.tensors if tensor.name == _ROPE]
            end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
        except Exception as error:  # a torn file makes it raise any of ten kinds
            raise ValueError(
                f"{shown(path)}: is torn, or no model ({told(error)}); fetch or write the file again."
            ) from error
        if not sizes or end > path.stat().st_size:
            raise ValueError(f"{shown(path)}: is torn, for not all of its tensors are there; fetch the file again.")
        if int(fields.get("split.count", 1)) > 1:
            raise ValueError(
                f"{shown(path)}: is one part of {fields['split.count']}; join them with llama.cpp's "
                "'llama-gguf-split --merge' and name the whole."
            )
        return cls(fields, sizes, rope[0] if rope else None)

    @property
    def adds_bos(self) -> bool | None:
        """Whether the tokenizer puts a BOS in front; None where the file does not say."""
        said = self.fields.get("tokenizer.ggml.add_bos_token")
        if said is None:  # llama.cpp's own default, for sentencepiece alone
            return True if self.fields.get("tokenizer.ggml.model") == "llama" else None
        return bool(said)

    def own(self, name: str) -> Any:
        """A field of the architecture, such as ".block_count"; None where there is none."""
        return self.fields.get(f"{self.architecture}{name}")


def complete(config: Any, described: Described, path: Path) -> None:
    """Put into the configuration what the file says and transformers' reader passes over.

    Raises:
        UnsupportedModelError: for what has no place there, naming it.
    """
    for name, attribute in _ALSO.items():
        if described.own(name) is not None and hasattr(config, attribute):
            setattr(config, attribute, described.own(name))
    if (described.architecture, described.own(".block_count")) in _BY_WIDTH:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    kind = described.own(".rope.scaling.type")
    unread = [name for name, neutral in _NEUTRAL.items() if described.own(name) not in (None, neutral)]
    unread += [".rope.scaling.type"] if kind not in (None, "none", "linear") else []
    if unread:
        raise UnsupportedModelError(
            f"{shown(path)}: has {shown(described.architecture)}{unread[0]} {shown(described.own(unread[0]))}, which "
            f"transformers does not read from GGUF files; {_WAY_OUT}."
        )
    if kind == "linear":
        _set_rotary(config, {"rope_type": "linear", "factor": float(described.own(".rope.scaling.factor"))})
    if described.rope is not None and not torch.all(described.rope == 1):
        _set_rotary(config, _llama3(config, described.rope, path))


def _llama3(config: Any, factors: Tensor, path: Path) -> dict[str, Any]:
    """Llama 3's rotary positions, which a GGUF file holds as a tensor of factors and transformers as four numbers.

    Raises:
        UnsupportedModelError: if the factors are not Llama 3's.
    """
    held = getattr(config, "rope_parameters", None) or {}
    base = held.get("rope_theta", getattr(config, "rope_theta", None))
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
    expected = None if base is None else llama3_factors(base, len(factors), scaling)
    if expected is None or not torch.allclose(factors, expected, rtol=1e-4, atol=0):
        raise UnsupportedModelError(
            f"{shown(path)}: its {_ROPE} are not Llama 3's rotary positions, and transformers does not read them; "
            f"{_WAY_OUT}."
        )
    return scaling


def _set_rotary(config: Any, scaling: dict[str, Any]) -> None:
    """Scaled rotary positions, in the form of the installed transformers; of Gemma 3, in its global layers."""
    held = getattr(config, "rope_parameters", None)
    if not isinstance(held, dict):  # transformers 4
        config.rope_scaling = scaling
    elif "full_attention" in held:
        config.rope_parameters = {**held, "full_attention": {**held["full_attention"], **scaling}}
    else:
        config.rope_parameters = {**held, **scaling}


def llama3_factors(base: float, n: int, scaling: Mapping[str, Any]) -> Tensor:
    """By what each of n rotary frequencies is divided, as llama.cpp's converter writes it."""
    low, high, length = (
        scaling[name] for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    turns = length / (2 * math.pi * base ** (torch.arange(n, dtype=torch.float64) / n))  # in the original context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / scaling["factor"] + smooth)).float()


def require_all_read(model: Any, loading: Mapping[str, Any], described: Described, path: Path) -> None:
    """Refuse where the model has weights that the file lacks (they would be random), or the file more than the model.

    Raises:
        UnsupportedModelError: saying what.
    """
    missing = sorted(loading["missing_keys"]) + [str(one[0]) for one in loading["mismatched_keys"]]
    held = sum(size for name, size in described.sizes.items() if name != _ROPE)
    made = sum(parameter.numel() for parameter in model.parameters())
    if missing or held != made:
        lacking = f", {shown(missing[0])} among those that it lacks" if missing else ""
        raise UnsupportedModelError(
            f"{shown(path)}: holds {held:,} numbers, where the {type(model).__name__} that transformers makes of it "
            f"has {made:,}{lacking}; is the file whole, and of a layout that transformers reads?"
        )
