"""How the search grows with k, prompt length, layers and vocabulary, on random Llama-style models."""

from typing import Any

import torch
import transformers
from common import best_times, table
from transformer_lens.model_bridge import TransformerBridge

import tl_subvalues as tlsv


def random_llama(**changes: int) -> Any:
    """A random Llama-style model; the readout is soft, as a trained one is at most of its inputs."""
    sizes: dict[str, Any] = {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    }
    config = transformers.LlamaConfig(**{**sizes, **changes})
    config.architectures = ["LlamaForCausalLM"]
    torch.manual_seed(0)
    hf = transformers.LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    tokenizer = tlsv.load_model().tokenizer
    return TransformerBridge.boot_transformers("random-llama", hf_model=hf, tokenizer=tokenizer)


def run() -> list[tuple[str, str]]:
    """One table, a row for each change from the middle model."""
    rows = []
    cases = [
        ("k = 10", {}, 10, 16),
        ("the middle: k = 300, 16 tokens, 8 layers, 32,000 words", {}, 300, 16),
        ("k = 3,000", {}, 3000, 16),
        ("128 tokens", {}, 300, 128),
        ("512 tokens", {}, 300, 512),
        ("16 layers", {"num_hidden_layers": 16}, 300, 16),
        ("64,000 words", {"vocab_size": 64_000}, 300, 16),
        ("128,000 words", {"vocab_size": 128_000}, 300, 16),
    ]
    for name, changes, k, length in cases:
        model = random_llama(**changes)
        tokens = torch.randint(10, 30_000, (length,), generator=torch.Generator().manual_seed(0))
        trace = tlsv.trace(model, tokens, 100)
        times = best_times(
            {
                "forward": lambda model=model, tokens=tokens: model(tokens[None]),
                "ffn": lambda trace=trace, k=k: trace.ffn_neurons(top=k),
                "attn": lambda trace=trace, k=k: trace.attn_neurons(top=k),
            },
            repeats=3,
        )
        tables = [trace.ffn_neurons(top=k), trace.attn_neurons(top=k)]
        counts = [
            f"{t.attrs['certificate']['evaluated']:,} of {t.attrs['certificate']['candidates']:,}" for t in tables
        ]
        rows.append(
            [name, f"{times['forward'] * 1e3:.0f} ms"]
            + [f"{times[kind] * 1e3:.0f} ms ({count})" for kind, count in zip(("ffn", "attn"), counts, strict=True)]
        )
    return [("Growth on random models", table(["change", "forward pass", "FFN neurons", "attention neurons"], rows))]


if __name__ == "__main__":
    with torch.no_grad():
        for title, text in run():
            print(f"## {title}\n\n{text}\n")
