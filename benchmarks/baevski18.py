"""Baevski & Auli's model at full size, random weights: converted, saved, loaded and traced; time and memory.

Each row is a process of its own, so that its peak is what a user's process would need.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import table

import tl_subvalues as tlsv

PROMPT, TARGET, RARE = "w12 w345 w30000 w250000 w7", "w99", "w200000"


def write_checkpoint(folder: Path) -> None:
    """A checkpoint as fairseq wrote it from a GPU in 2020 (tied tensors as separate copies), and its dictionary."""
    shape = tlsv.baevski18.config()
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def draw(name: str, *size: int, std: float) -> torch.Tensor:
        state[f"decoder.{name}"] = torch.randn(size, generator=generator) * std
        return state[f"decoder.{name}"]

    d = shape.d_model
    for b, band in enumerate(shape.bands):
        words = draw(f"embed_tokens.embeddings.{b}.0.weight", band.size, band.width, std=band.width**-0.5)
        projection = draw(f"embed_tokens.embeddings.{b}.1.weight", d, band.width, std=d**-0.5)
        tail = f"decoder.adaptive_softmax.tail.{b - 1}"
        if b == 0:
            state["decoder.adaptive_softmax.head.word_proj.weight"] = words.clone()
        else:
            state |= {f"{tail}.0.weight": projection.clone(), f"{tail}.2.weight": words.clone()}
    draw("adaptive_softmax.head.class_proj.weight", len(shape.bands) - 1, d, std=d**-0.5)
    for layer in range(shape.n_layers):
        own = f"layers.{layer}"
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
            draw(f"{own}.{name}.weight", d, d, std=d**-0.5)
            draw(f"{own}.{name}.bias", d, std=0.1)
        for name, rows, columns in (("fc1", shape.d_mlp, d), ("fc2", d, shape.d_mlp)):
            draw(f"{own}.{name}.weight", rows, columns, std=columns**-0.5)
            draw(f"{own}.{name}.bias", rows, std=0.1)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            draw(f"{own}.{name}.weight", d, std=0.1).add_(1)
            draw(f"{own}.{name}.bias", d, std=0.1)
    options = {
        "arch": "transformer_lm_wiki103",
        "decoder_layers": shape.n_layers,
        "decoder_attention_heads": shape.n_heads,
        "decoder_embed_dim": d,
        "decoder_ffn_embed_dim": shape.d_mlp,
        "adaptive_input": True,
        "adaptive_input_cutoff": "20000,60000",
        "adaptive_softmax_cutoff": "20000,60000",
        "adaptive_input_factor": 4,
        "adaptive_softmax_factor": 4,
        "tie_adaptive_weights": True,
        "tie_adaptive_proj": True,
        "no_decoder_final_norm": True,
        "decoder_normalize_before": True,
        "max_target_positions": shape.n_ctx,
    }
    state["decoder.version"] = torch.tensor([3.0])
    checkpoint = {"args": argparse.Namespace(**options), "model": state}
    torch.save(checkpoint, folder / "model.pt", _use_new_zipfile_serialization=False)
    lines = [f"w{i} {10_000_000 // (i + 1)}\n" for i in range(shape.d_vocab - 4)]
    (folder / "dict.txt").write_text("".join(lines))


def measure(folder: Path, what: str) -> dict[str, Any]:
    """Seconds of each step of one row, counts, and the process's peak memory in GB."""
    found: dict[str, Any] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = step()
        found[name] = time.perf_counter() - start
        return result

    if what == "convert":
        timed("load", lambda: tlsv.baevski18.convert(folder / "model.pt", folder / "dict.txt", folder / "out"))
    else:
        model = timed("load", lambda: tlsv.baevski18.load(folder if what == "checkpoint" else folder / "out"))
        found["parameters"] = sum(p.numel() for p in model.original_model.parameters())
        tokens = model.to_tokens(PROMPT)
        found["forward"] = min(_seconds(lambda: model(tokens)) for _ in range(2))
        for name, target in (("frequent", TARGET), ("rare", RARE)):
            timed(name, lambda target=target: _both(tlsv.trace(model, PROMPT, target)))
        trace = tlsv.trace(model, PROMPT, RARE)
        timed("vocabulary", lambda: trace.vocabulary([f"L15N{i}" for i in range(10)]))
    status = Path("/proc/self/status").read_text().splitlines()
    found["peak"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20
    return found


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _both(trace: Any) -> None:
    trace.ffn_neurons(top=300)
    trace.attn_neurons(top=300)


def run() -> list[tuple[str, str]]:
    """One row a way to the model."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder)
        size = (folder / "model.pt").stat().st_size / 2**30
        for what, title in (
            ("checkpoint", f"load the checkpoint ({size:.2f} GB)"),
            ("convert", "convert the checkpoint"),
            ("converted", "load what was converted"),
        ):
            command = [sys.executable, __file__, what, name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            both = " / ".join(f"{found[k]:.1f} s" for k in ("frequent", "rare") if k in found)
            rows.append(
                [
                    title,
                    f"{found['load']:.1f} s",
                    f"{found['forward']:.2f} s" if "forward" in found else "",
                    both,
                    f"{found['vocabulary']:.2f} s" if "vocabulary" in found else "",
                    f"{found['peak']:.2f} GB",
                ]
            )
    header = [
        "246,933,504 parameters, random; 6 tokens",
        "time",
        "forward pass",
        "trace and both top 300, target in band 0 / band 2",
        "vocabulary of ten neurons",
        "peak memory of the process",
    ]
    return [("Baevski & Auli 2018, full size", table(header, rows))]


if __name__ == "__main__":
    with torch.no_grad():
        if len(sys.argv) == 3:
            print(json.dumps(measure(Path(sys.argv[2]), sys.argv[1])))
        else:
            for title, text in run():
                print(f"## {title}\n\n{text}\n")
