"""Rows without a prompt: `find` and `write_index` beside their bare products on SmolLM2-135M; `find` on a 7B shape."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import large
import torch
from common import best_times, missed, peak_memory_mb, table
from torch import Tensor

import tl_subvalues as tlsv

WORD = 3575  # any word of the vocabulary: all cost the same
SHAPE = "Llama-7B, bfloat16"
BLOCK = 2048  # rows in a product


def run() -> list[tuple[str, str]]:
    """Two tables: the embedded model, and the 7B shape with its memory."""
    return [
        ("Rows by word on SmolLM2-135M, 46,080 FFN neurons and 49,152 words", on_the_embedded_model()),
        (f"Rows by word, {SHAPE}, random weights", on_a_large_shape()),
    ]


def blocks(model: Any) -> Iterator[Tensor]:
    """W_out of all layers, a block of rows at a time, in float32."""
    for block in model.blocks:
        W_out = block.mlp.W_out.detach()
        for start in range(0, len(W_out), BLOCK):
            yield W_out[start : start + BLOCK].float()


def products(model: Any, columns: Tensor) -> float:
    """What a user would write: every row with these columns, and nothing kept but a number."""
    return sum(float((rows @ columns)[0, 0]) for rows in blocks(model))


def columns_of(model: Any) -> Tensor:
    """W_U with the final norm's gain, [d_model, vocab], in float32."""
    gain = model.ln_final.original_component.weight.detach().float()
    return gain[:, None] * model.W_U.detach().float()


def on_the_embedded_model() -> str:
    """`find` beside the product with one column, `write_index` beside the product with all."""
    model = tlsv.load_model(device="cpu")
    W_U = columns_of(model)
    one = W_U[:, WORD : WORD + 1].contiguous()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "words.parquet"

        def index() -> None:
            path.unlink(missing_ok=True)
            tlsv.write_index(model, path, k=50, show_progress=False)

        quick = best_times({"bare": lambda: products(model, one), "find": lambda: tlsv.find(model, WORD)}, 5)
        slow = best_times({"bare": lambda: products(model, W_U), "index": index}, 2)
        memory = peak_memory_mb(lambda: tlsv.find(model, WORD)), peak_memory_mb(index)
    short, ratio = quick["find"] / quick["bare"], slow["index"] / slow["bare"]
    rows = [
        ["W_out with one word's column, all layers", f"{1e3 * quick['bare']:.0f} ms", "1", "", ""],
        [
            "`find`, one word",
            f"{1e3 * quick['find']:.0f} ms",
            f"{short:.1f}",
            mb(memory[0]),
            "",
        ],
        ["W_out @ W_U, all layers, product written out", f"{slow['bare']:.1f} s", "1", "", ""],
        ["`write_index`, 50 words a side", f"{slow['index']:.1f} s", f"{ratio:.2f}", mb(memory[1]), "at most 1.1"],
    ]
    text = table(["task", "time", "ratio", "memory beyond the model", "goal"], rows)
    return text + missed(
        "the price of the index in bare products", ratio, 1.1, "the rest is finding and writing the extremes"
    )


def on_a_large_shape() -> str:
    """`find` over 352,256 rows, whose weights stay in bfloat16 where they are."""
    model = large.random_model(SHAPE, "cpu")
    one = columns_of(model)[:, WORD : WORD + 1].contiguous()
    memory = peak_memory_mb(lambda: tlsv.find(model, WORD))
    times = best_times({"bare": lambda: products(model, one), "find": lambda: tlsv.find(model, WORD)}, 2)
    rows = [
        ["W_out with one word's column, all layers", f"{times['bare']:.2f} s", "1", ""],
        ["`find`, one word", f"{times['find']:.2f} s", f"{times['find'] / times['bare']:.1f}", mb(memory)],
    ]
    return table(["task", "time", "ratio", "memory beyond the model"], rows)


def mb(megabytes: float) -> str:
    """A whole number of MB."""
    return f"{megabytes:.0f} MB"


if __name__ == "__main__":
    with torch.no_grad():
        for title, text in run():
            print(f"## {title}\n\n{text}\n", flush=True)
