"""A million rows are streamed: one worker's share of them in each format, with the memory that it takes.

python benchmarks/streamed.py [ROWS]
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
from common import table
from soak import facts, resident_mb

import tl_subvalues as tlsv

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
SHARDS = 20_000


def written(folder: Path) -> dict[str, Path]:
    """The rows as files, by format, and as a dataset that was saved in a folder."""
    from datasets import Dataset

    rows = facts(ROWS)
    paths = {name: folder / f"facts.{name}" for name in ("csv", "parquet", "jsonl")}
    rows.to_csv(paths["csv"], index=False)
    rows.to_parquet(paths["parquet"], index=False)
    with paths["jsonl"].open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows.to_dict("records"))
    paths["dataset"] = folder / "dataset"
    Dataset.from_pandas(rows).save_to_disk(paths["dataset"])
    return paths


def peak(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MB resident beyond what was there, looked at twenty times a second."""
    before, most, done = resident_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], resident_mb() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return seconds, most[0]


def main() -> None:
    """One worker's share from each file."""
    from helpers import zoo

    model = zoo.model("llama")
    tlsv.collect(model, pd.DataFrame(facts(4)), top=20, prepend_bos=False, show_progress=False)
    with tempfile.TemporaryDirectory() as scratch:
        paths, lines = written(Path(scratch)), []
        for name, path in paths.items():
            how = {"top": 20, "prepend_bos": False, "shard": (0, SHARDS), "out": Path(scratch) / f"parts-{name}"}
            seconds, mb = peak(partial(tlsv.collect, model, path, show_progress=False, **how))
            size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
            lines.append([name, f"{size / 2**20:.0f} MB", f"{seconds:.1f} s", f"{mb:.0f} MB"])
    print(table([f"{ROWS:,} rows, of which {ROWS // SHARDS}", "file", "time", "memory beyond the start"], lines))


if __name__ == "__main__":
    main()
