"""Hugging Face models written as GGUF files, as llama.cpp's converter writes them; with tiny tokenizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

# How much a file's norms are above the model's: Gemma's multiply by 1 + w, and its files hold that sum.
NORM_OFFSET = {"gemma2": 1.0, "gemma3": 1.0}
# The file's architecture, where it is another than ours.
ARCHITECTURES = {"mistral": "llama"}
WORDS = "abcdefghijklmnopqrstuvwxyz"


def write(
    path: Path,
    family: str,
    model: Any,
    *,
    name: str = "tiny",
    tokenizer: str = "gpt2",
    leave_out: str = "",
    fields: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    dtype: type = np.float32,
) -> Path:
    """A model as a GGUF file.

    Args:
        path: of the file.
        family: as `zoo` has it.
        model: of Hugging Face.
        name: of the model, in the file.
        tokenizer: "gpt2" (byte-level BPE) or "llama" (sentencepiece).
        leave_out: a tensor that is not written.
        fields: what else to write.
        dtype: of the matrices.
    """
    config, architecture = model.config, ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope_base(config))
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(d_head)
    if family not in ("llama", "mistral", "qwen2"):
        writer.add_key_length(d_head)
        writer.add_value_length(d_head)
    if family in NORM_OFFSET:
        writer.add_sliding_window(config.sliding_window)
    {"gpt2": add_gpt2_words, "llama": add_llama_words}[tokenizer](writer, config.vocab_size)
    fields(writer)
    for tensor_name, tensor in tensors(family, model).items():
        if tensor_name != leave_out:
            writer.add_tensor(tensor_name, tensor.astype(dtype if tensor.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rope_base(config: Any) -> float:
    held = getattr(config, "rope_parameters", None) or {}
    held = held.get("full_attention", held)
    return float(held.get("rope_theta") or config.rope_theta)


def tensors(family: str, model: Any) -> dict[str, np.ndarray]:
    """The weights by llama.cpp's names; Llama's queries and keys in its order, halves of a head interleaved."""
    config, architecture = model.config, ARCHITECTURES.get(family, family)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        value = parameter.detach().float().numpy()
        if "norm" in stem:
            value = value + NORM_OFFSET.get(family, 0.0)
        if architecture == "llama" and ".q_proj" in stem:
            value = interleaved(value, config.num_attention_heads)
        if architecture == "llama" and ".k_proj" in stem:
            value = interleaved(value, config.num_key_value_heads)
        found[f"{names.get_name(stem)}.{suffix}"] = value
    return found


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def add_gpt2_words(writer: gguf.GGUFWriter, size: int) -> None:
    """Letters, and letters with a space before them; one merge for each."""
    words = ["<0>", "<1>", "<2>", *WORDS, "Ġ", *(f"Ġ{letter}" for letter in WORDS)]
    words += [f"<unused{i}>" for i in range(len(words), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    add_words(writer, words)
    writer.add_token_merges([f"Ġ {letter}" for letter in WORDS])


def add_llama_words(writer: gguf.GGUFWriter, size: int) -> None:
    """The same in sentencepiece's spelling, with scores instead of merges."""
    words = ["<0>", "<1>", "<2>", *WORDS, "▁", *(f"▁{letter}" for letter in WORDS)]
    words += [f"<unused{i}>" for i in range(len(words), size)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    add_words(writer, words)
    writer.add_token_scores([float(-i) for i in range(len(words))])


def add_words(writer: gguf.GGUFWriter, words: list[str]) -> None:
    writer.add_token_list(words)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(words))])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)


def llama3_factors(scaling: dict[str, Any], base: float, d_head: int) -> torch.Tensor:
    """As llama.cpp's converter computes them: frequency by frequency."""
    factors = []
    for i in range(0, d_head, 2):
        wavelength = 2 * np.pi * base ** (i / d_head)
        longest = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
        shortest = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
        if wavelength < shortest:
            factors.append(1.0)
        elif wavelength > longest:
            factors.append(scaling["factor"])
        else:
            span = scaling["high_freq_factor"] - scaling["low_freq_factor"]
            smooth = scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]
            factors.append(1 / ((1 - smooth / span) / scaling["factor"] + smooth / span))
    return torch.tensor(factors)
