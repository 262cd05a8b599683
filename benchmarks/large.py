"""GPT-2-medium's shape in float32 and Llama-7B's shape in bfloat16, random weights: top 300, time and memory."""

import gc
from typing import Any

import torch
import transformers
from common import best_times, peak_memory_mb, table
from transformer_lens.model_bridge import TransformerBridge

import tl_subvalues as tlsv

SHAPES: dict[str, tuple[Any, str, torch.dtype]] = {
    "GPT-2-medium, float32": (
        lambda: transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16),
        "GPT2LMHeadModel",
        torch.float32,
    ),
    "Llama-7B, bfloat16": (
        lambda: transformers.LlamaConfig(
            vocab_size=32_000,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
        ),
        "LlamaForCausalLM",
        torch.bfloat16,
    ),
}


def random_model(shape: str, device: str) -> Any:
    """A model of that shape, weights filled from one random block (drawing billions of numbers takes minutes)."""
    make_config, class_name, dtype = SHAPES[shape]
    config = make_config()
    config.architectures = [class_name]
    with torch.device("meta"):
        hf = getattr(transformers, class_name)._from_config(config, attn_implementation="eager", dtype=dtype)
    hf = hf.to_empty(device=device).eval()
    block = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).to(device, dtype)
    for name, parameter in hf.named_parameters():
        flat = parameter.data.view(-1)
        for start in range(0, len(flat), len(block)):
            piece = flat[start : start + len(block)]
            piece.copy_(block[: len(piece)].roll(start // len(block) + len(name)))
        if name.endswith("norm.weight") or (".ln_" in name and name.endswith("weight")):
            parameter.data.fill_(1.0)
    for module in hf.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):  # its buffers were left empty by the meta device
            for name, buffer in type(module)(config).named_buffers():
                getattr(module, name).copy_(buffer)
    for buffer in hf.buffers():
        if buffer.dtype == torch.bool:
            buffer.copy_(torch.ones_like(buffer).tril())
    hf.tie_weights()
    return TransformerBridge.boot_transformers(shape, hf_model=hf, tokenizer=tlsv.load_model().tokenizer, dtype=dtype)


def run(shapes: list[str] | None = None, device: str = "cpu") -> list[tuple[str, str]]:
    """One row a shape."""
    rows = []
    for shape in shapes or list(SHAPES):
        model = random_model(shape, device)
        tokens = torch.tensor([504, 3575, 282, 4649, 314])
        weights = sum(p.numel() * p.element_size() for p in model.original_model.parameters()) / 2**20

        def both(model: Any = model, tokens: Any = tokens) -> None:
            trace = tlsv.trace(model, tokens, 7042)
            trace.ffn_neurons(top=300)
            trace.attn_neurons(top=300)

        memory = peak_memory_mb(both)
        times = best_times({"forward": lambda model=model, tokens=tokens: model(tokens[None]), "both": both}, repeats=2)
        trace = tlsv.trace(model, tokens, 7042)
        counts = [
            f"{t.attrs['certificate']['evaluated']:,} of {t.attrs['certificate']['candidates']:,}"
            for t in (trace.ffn_neurons(top=300), trace.attn_neurons(top=300))
        ]
        rows.append(
            [
                shape,
                f"{weights / 1024:.1f} GB",
                f"{times['forward']:.2f} s",
                f"{times['both']:.2f} s ({times['both'] / times['forward']:.1f} passes)",
                f"{memory:.0f} MB",
                "; ".join(counts),
            ]
        )
        del model, trace, both
        gc.collect()
    header = ["shape", "weights", "forward pass", "trace and both top 300", "memory beyond the weights", "evaluated"]
    return [("Larger shapes, random weights, 5 tokens", table(header, rows))]


if __name__ == "__main__":
    with torch.no_grad():
        for title, text in run():
            print(f"## {title}\n\n{text}\n")
