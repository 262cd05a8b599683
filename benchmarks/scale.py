"""A million prompts on paper: what parts take on disk, how fast they are summed, and what the passes would take.

python benchmarks/scale.py [FACTS]

Measured here, on rows drawn at random: bytes a fact, time to write and to sum them (beside DuckDB's query over the same
files), memory. Arithmetic, not measured: a prompt's forward pass by itself reads all weights once, in bfloat16; in
batches it takes 2 × parameters × tokens operations, at a share of a GPU's peak that is assumed.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import peak_memory_mb

import tl_subvalues as tlsv
from tl_subvalues.study.parts import PartsFolder, Shard, part_at, part_size, read_part
from tl_subvalues.study.sums import RowSums

FACTS = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
TOP = 300
# Layers, FFN neurons, heads and dimensions a head, parameters, GPUs that a model takes: Llama 2.
SHAPES = {"7B": (32, 11_008, 32, 128, 6.7e9, 1), "70B": (80, 28_672, 64, 128, 69e9, 2)}
TOKENS, PROMPTS = 16, 1_000_000
# An H100: bytes and (without sparsity, bfloat16) operations a second; of the latter batches are taken to reach a third.
BANDWIDTH, PEAK, SHARE = 3.35e12, 989e12, 1 / 3
# Passes over one prompt that `collect(top=300)` takes, on SmolLM2 and two cores: one fact at a time, and in batches.
ALONE, BATCHED = 8.2, 5.0


def drawn(generator: np.random.Generator, kind: str, shape: tuple[float, ...], facts: int) -> np.ndarray:
    """Numbers of a fact's top: some units often, by Zipf's law, and half of them any, so that all units are met."""
    layers, ffn, heads, dims = shape[:4]
    size = {"ffn_neuron": layers * ffn, "attn_neuron": layers * heads * dims, "head": layers * heads}[kind]
    often = (generator.zipf(1.3, (facts, 2 * TOP)) * 7919) % size
    numbers = np.concatenate([often, generator.integers(0, size, (facts, 2 * TOP))], axis=1)
    rows = [np.unique(row)[:TOP] for row in numbers]
    return np.stack([np.resize(row, TOP) if len(row) < TOP else generator.permutation(row) for row in rows])


def label(kind: str, number: int, shape: tuple[float, ...]) -> str:
    """What a unit is called."""
    ffn, heads, dims = shape[1:4]
    if kind == "ffn_neuron":
        return f"L{number // ffn}N{number % ffn}"
    if kind == "head":
        return f"L{number // heads}H{number % heads}"
    return f"L{number // (heads * dims)}H{number // dims % heads}D{number % dims}"


def part(generator: np.random.Generator, numbers: range, shape: tuple[float, ...]) -> pa.Table:
    """Rows as `collect` would write them."""
    tables = []
    for kind in ("ffn_neuron", "attn_neuron", "head"):
        units = drawn(generator, kind, shape, len(numbers))
        increases = -np.sort(-generator.exponential(0.05, units.shape).astype(np.float32), axis=1)
        tables.append(
            pa.table(
                {
                    "fact": pa.array(np.repeat(np.asarray(numbers), TOP), pa.int64()),
                    "unit": pa.array([kind] * units.size),
                    "label": pa.array([label(kind, n, shape) for n in units.reshape(-1).tolist()]),
                    "increase": pa.array(increases.reshape(-1).astype(np.float64)),
                    "rank": pa.array(np.tile(np.arange(1, TOP + 1, dtype=np.int32), len(numbers))),
                }
            )
        )
    return pa.concat_tables(tables)


def measured(name: str, shape: tuple[float, ...]) -> tuple[float, float]:
    """Bytes a fact, and rows that are summed in a second."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"schema": "tl-subvalues/parts/1", "what": "collect", "n_facts": FACTS}
        folder, size = PartsFolder(Path(scratch) / "parts", settings, Shard(), FACTS), part_size(PROMPTS)
        folder.path.mkdir()
        spent = 0.0
        for start in range(0, FACTS, size):
            places = range(start, min(start + size, FACTS))
            rows = part(generator, places, shape)
            begin = time.process_time()
            folder.write(places, rows, [])
            spent += time.process_time() - begin
        files = list(folder.path.glob("*.parquet"))
        bytes_a_fact = sum(file.stat().st_size for file in files) / FACTS
        sums, found = RowSums(), [part_at(file) for file in files]
        begin = time.process_time()
        for one in found:
            assert one is not None
            sums.add(read_part(one))
        took = time.process_time() - begin
        begin = time.process_time()
        units = len(sums.table())
        last = time.process_time() - begin
        rate = FACTS * 3 * TOP / took
        memory = peak_memory_mb(lambda: tlsv.merge(folder.path) is None)
        print(
            f"{name}: {bytes_a_fact:,.0f} bytes and {1000 * spent / FACTS:.2f} ms of writing a fact; merge: "
            f"{rate / 1e6:.1f} million rows a second, then {last:.1f} s for {units:,} units; {memory:.0f} MB",
            flush=True,
        )
        import duckdb

        query = f"SELECT unit, label, sum(increase), count(*), avg(rank) FROM '{folder.path}/*.parquet' GROUP BY ALL"
        begin = time.process_time()
        memory = peak_memory_mb(lambda: duckdb.sql(query).to_arrow_table() and None)
        took = time.process_time() - begin
        print(f"{name}: DuckDB's query: {FACTS * 3 * TOP / took / 1e6:.1f} million rows a second, {memory:.0f} MB")
    return bytes_a_fact, rate


def main() -> None:
    """Measure, and print the table."""
    for name, shape in SHAPES.items():
        bytes_a_fact, rate = measured(name, shape)
        parameters, gpus_each = shape[-2:]
        alone = 2 * parameters / BANDWIDTH
        batched = 2 * parameters * TOKENS / (PEAK * SHARE)
        sums = PROMPTS * 3 * TOP / rate
        print(
            f"{name}: a pass over one prompt {1000 * alone:.1f} ms, in batches {1000 * batched:.2f} ms a prompt; "
            f"parts {PROMPTS * bytes_a_fact / 1e9:.1f} GB; sums {sums / 60:.1f} min"
        )
        for gpus in (1, 8, 64):
            if gpus < gpus_each:
                continue
            models = gpus // gpus_each
            floor, goal, now = (PROMPTS * each / models / 3600 for each in (batched, BATCHED * alone, ALONE * alone))
            print(
                f"{name}, {gpus} GPUs: {floor:.2f} h of batched passes alone, {goal:.1f} h at {BATCHED} passes a fact, "
                f"{now:.1f} h at {ALONE}; then {PROMPTS * bytes_a_fact / (goal * 3600) / 1e6:.1f} MB a second written, "
                f"sums {100 * sums / (goal * 3600):.1f}% of the run"
            )


if __name__ == "__main__":
    main()
