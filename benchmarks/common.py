"""Timing and tables shared by the benchmarks: every speed is a ratio of two things timed in one run, turn by turn."""

import ctypes
import gc
import time
from collections.abc import Callable
from typing import Any

import torch


def best_times(tasks: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Shortest time of each task in seconds, the tasks taking turns so that noise of the machine meets all of them."""
    times = dict.fromkeys(tasks, float("inf"))
    for _ in range(repeats):
        for name, task in tasks.items():
            gc.collect()
            start = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def peak_memory_mb(task: Callable[[], Any], device: str = "cpu") -> float:
    """Memory that a task needs at its peak beyond what was there before it, in MB: resident (Linux), or the GPU's."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        there = torch.cuda.memory_allocated()
        task()
        return (torch.cuda.max_memory_allocated() - there) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed before would be used again unseen
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    task()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def missed(what: str, value: float, goal: float, limit: str) -> str:
    """A sentence for a goal that is missed, with what limits it; nothing where it is reached."""
    return f"\n\nMissed: {what} is {value:.2f} instead of {goal:g}; {limit}." if value > goal else ""
