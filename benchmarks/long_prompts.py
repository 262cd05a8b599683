"""Long prompts of SmolLM2-135M: what a trace and its tables take beside the plain forward pass, each in a process.

python benchmarks/long_prompts.py [TOKENS ...]
"""

import json
import subprocess
import sys
import time
from pathlib import Path

LENGTHS = [int(n) for n in sys.argv[1:] if n.isdigit()] or [500, 1000, 2000, 8000]
TABLES = ("layers", "heads", "ffn_neurons", "head_positions", "attn_neurons")


def status(name: str) -> float:
    """A number of the process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def one(what: str, length: int) -> dict[str, float]:
    """Seconds of the work, and the most memory beyond the model's; in a process of its own."""
    import torch

    import tl_subvalues as tlsv

    model = tlsv.load_model(device="cpu")
    words = model.to_tokens("The capital of France is Paris, the capital of Italy is Rome. ", prepend_bos=False)[0]
    tokens = words.repeat(length // len(words) + 1)[:length]
    with torch.no_grad():
        model(tokens[None, :16])
    Path("/proc/self/clear_refs").write_text("5")  # the most resident, from here on
    before, begin = status("VmRSS"), time.perf_counter()
    if what == "forward":
        with torch.no_grad():
            model(tokens[None])
    else:
        trace = tlsv.trace(model, tokens, " Paris")
        for name in TABLES[: 0 if what == "trace" else None]:
            getattr(trace, name)()
    return {"seconds": time.perf_counter() - begin, "mb": status("VmHWM") - before}


def run() -> list[tuple[str, str]]:
    """One row a length."""
    from common import table

    rows = []
    for length in LENGTHS:
        found = []
        for what in ("forward", "trace", "trace and tables"):
            command = [sys.executable, __file__, "--one", what, str(length)]
            made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(made.splitlines()[-1]))
        forward = found[0]["seconds"]
        cells = [f"{one['seconds']:.1f} s ({one['seconds'] / forward:.1f}), {one['mb']:,.0f} MB" for one in found]
        rows.append([f"{length:,}", *cells])
    head = ["tokens", "forward pass", "trace", "trace and all five tables"]
    return [("Long prompts of SmolLM2-135M: time (in forward passes), memory beyond the model", table(head, rows))]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], int(sys.argv[3]))))
    else:
        for title, text in run():
            print(f"## {title}\n\n{text}\n", flush=True)
