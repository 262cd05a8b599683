"""Total effects and the graph on SmolLM2-135M, in forward passes of the same run; integrated gradients beside."""

from collections.abc import Callable
from typing import Any

import torch
from common import best_times, missed, peak_memory_mb, table

import tl_subvalues as tlsv
from tl_subvalues.upstream.led_back import EffectRule

RULES: tuple[EffectRule, ...] = ("gradient", "frozen", "half")
LONG = 256  # tokens


def run() -> list[tuple[str, str]]:
    """Effects of all FFN neurons at all positions, a graph of 64 nodes; the same on a long prompt, with its memory."""
    model = tlsv.load_model(device="cpu")
    prompts = {"The capital of France is": 30.0, "random words": None}
    generator = torch.Generator().manual_seed(0)
    found, notes = [], ""
    for prompt, graph_goal in prompts.items():
        tokens = model.to_tokens(prompt, prepend_bos=False)
        if graph_goal is None:
            tokens = torch.randint(1000, 40_000, (1, LONG), generator=generator)
        trace = tlsv.trace(model, tokens, 5)
        tasks: dict[str, Callable[[], Any]] = {"forward pass": lambda tokens=tokens: model(tokens)}
        for rule in RULES:
            tasks[f'effects, rule "{rule}"'] = lambda rule=rule, trace=trace: trace.effects(rule=rule)
        if graph_goal is not None:
            tasks["graph of 64 nodes"] = lambda trace=trace: trace.graph(nodes=64)
            tasks["integrated gradients, 8 steps"] = lambda trace=trace: tlsv.RANKINGS["integrated_gradients"](trace)
        times = best_times(tasks, 5 if graph_goal is not None else 3)
        one = times["forward pass"]
        for name, seconds in times.items():
            goal = 4.0 if name.startswith("effects") else graph_goal if name.startswith("graph") else None
            memory = f"{peak_memory_mb(tasks[name]):.0f} MB" if goal is not None else ""
            shown = "" if goal is None else f"at most {goal:g}"
            what, passes = f"{name}, {tokens.shape[1]} tokens", seconds / one
            found.append([what, f"{1e3 * seconds:.0f} ms", f"{passes:.1f}", memory, shown])
            if goal is not None:
                notes += missed(f"{what}, in forward passes,", passes, goal, "see above")
    text = table(["task", "time", "forward passes", "memory beyond the trace", "goal"], found)
    return [("Total effects and the graph on SmolLM2-135M, all FFN neurons at all positions", f"{text}\n{notes}")]
