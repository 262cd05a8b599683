"""GPT-2-medium in float32, Llama-7B (on a GPU: 13B, too) in bfloat16, random weights: top 300, time and memory."""

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
    "Llama-7B, bfloat16": (lambda: llama(4096, 11_008, 32), "LlamaForCausalLM", torch.bfloat16),
    "Llama-13B, bfloat16": (lambda: llama(5120, 13_824, 40), "LlamaForCausalLM", torch.bfloat16),
}
# Where a GPU is at hand, all of them run on it, too.
ON_DEVICE = {"cpu": ["GPT-2-medium, float32", "Llama-7B, bfloat16"], "cuda": list(SHAPES)}

# With a margin for what is computed.
GPU_GIGABYTES = {"GPT-2-medium, float32": 4, "Llama-7B, bfloat16": 16, "Llama-13B, bfloat16": 28}


def llama(d_model: int, d_mlp: int, n: int) -> transformers.LlamaConfig:
    """Llama of the first two generations: as many layers as heads, 32,000 words."""
    return transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n,
        num_attention_heads=n,
        num_key_value_heads=n,
    )


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
    tokenizer = tlsv.load_model().tokenizer
    return TransformerBridge.boot_transformers(shape, hf_model=hf, tokenizer=tokenizer, dtype=dtype, device=device)


def run() -> list[tuple[str, str]]:
    """One row a shape and device."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = [row for device in devices for row in rows_on(device, ON_DEVICE[device])]
    header = ["shape", "weights", "forward pass", "trace and both top 300", "memory beyond the weights", "evaluated"]
    return [("Larger shapes, random weights, 5 tokens", table(header, rows))]


def rows_on(device: str, shapes: list[str]) -> list[list[str]]:
    """Each shape on a device. Memory: the process's on a CPU, the device's on a GPU."""
    rows = []
    for shape in shapes:
        if device == "cuda" and 2**30 * GPU_GIGABYTES[shape] > torch.cuda.mem_get_info()[0]:
            print(f"{shape}: left out, for it needs {GPU_GIGABYTES[shape]} GB of the GPU's memory")
            continue
        model = random_model(shape, device)
        tokens = torch.tensor([504, 3575, 282, 4649, 314], device=device)
        weights = sum(p.numel() * p.element_size() for p in model.original_model.parameters()) / 2**20

        def both(model: Any = model, tokens: Any = tokens) -> None:
            trace = tlsv.trace(model, tokens, 7042)
            trace.ffn_neurons(top=300)
            trace.attn_neurons(top=300)

        if device == "cuda":
            both()  # else the libraries' own workspace would be counted
        memory = peak_memory_mb(both, device)
        times = best_times({"forward": lambda model=model, tokens=tokens: model(tokens[None]), "both": both}, repeats=2)
        trace = tlsv.trace(model, tokens, 7042)
        counts = [
            f"{t.attrs['certificate']['evaluated']:,} of {t.attrs['certificate']['candidates']:,}"
            for t in (trace.ffn_neurons(top=300), trace.attn_neurons(top=300))
        ]
        rows.append(
            [
                shape if device == "cpu" else f"{shape}, {torch.cuda.get_device_name()}",
                f"{weights / 1024:.1f} GB",
                f"{times['forward']:.2f} s",
                f"{times['both']:.2f} s ({times['both'] / times['forward']:.1f} passes)",
                f"{memory:.0f} MB",
                "; ".join(counts),
            ]
        )
        del model, trace, both
        gc.collect()
        torch.cuda.empty_cache()
    return rows


if __name__ == "__main__":
    with torch.no_grad():
        for title, text in run():
            print(f"## {title}\n\n{text}\n")
