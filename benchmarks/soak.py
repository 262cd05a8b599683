"""Ten thousand facts of a tiny model: does memory stay flat? Resident memory and time after every thousand facts.

python benchmarks/soak.py [FACTS]
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers import surroundings, zoo  # noqa: F401

import tl_subvalues as tlsv
from tl_subvalues.study.parts import part_size

FACTS = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000


def resident_mb() -> float:
    """What the process takes now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def facts(count: int) -> pd.DataFrame:
    """Prompts of three to six words, drawn at random."""
    words = torch.randint(30, 61, (count, 7), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [" ".join(f"w{w}" for w in row[: 3 + i % 4]) for i, row in enumerate(words)]
    return pd.DataFrame({"prompt": prompts, "target": [f"w{row[-1]}" for row in words]})


def main() -> None:
    """Run, and say how far it is."""
    with tempfile.TemporaryDirectory() as scratch:
        path, out = Path(scratch) / "facts.csv", Path(scratch) / "parts"
        facts(FACTS).to_csv(path, index=False)
        model = zoo.model("llama")
        begin, done = time.perf_counter(), threading.Event()

        def watch() -> None:
            told, step = 0, max(1, FACTS // 10)
            while not done.wait(0.2):
                made = len(list(out.glob("*.parquet"))) * part_size(FACTS)
                if made >= told + step:
                    told = made // step * step
                    print(f"{made:,} facts: {resident_mb():.0f} MB, {time.perf_counter() - begin:.0f} s", flush=True)

        watcher = threading.Thread(target=watch)
        watcher.start()
        table = tlsv.collect(model, path, top=20, prepend_bos=False, out=out, show_progress=False)
        done.set()
        watcher.join()
        size = sum(file.stat().st_size for file in out.glob("*.parquet"))
        print(f"end: {resident_mb():.0f} MB, {time.perf_counter() - begin:.0f} s; {len(table):,} units, {size:,} bytes")


if __name__ == "__main__":
    main()
