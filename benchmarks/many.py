"""Many facts on SmolLM2-135M: `collect` in forward passes over one prompt of the same run."""

from pathlib import Path

import pandas as pd
from common import best_times, missed, peak_memory_mb, table

import tl_subvalues as tlsv

FACTS, BATCH = 48, 24
GOALS = {50: 2.0, 300: 5.0}


def run() -> list[tuple[str, str]]:
    """What a fact costs, by the number of units that are wanted of it."""
    model = tlsv.load_model(device="cpu")
    path = Path(__file__).parents[1] / "demos" / "data" / "facts.csv"
    facts = pd.read_csv(path).sample(FACTS, random_state=0)
    prompts = [model.to_tokens(prompt) for prompt in facts["prompt"]]

    def passes() -> None:
        for tokens in prompts:
            model(tokens)

    def collecting(top: int) -> None:
        tlsv.collect(model, facts, top=top, batch_size=BATCH, show_progress=False)

    tasks = {f"top={top}": lambda top=top: collecting(top) for top in GOALS}
    times = best_times({"passes": passes, **tasks}, 2)
    rows, notes = [["a forward pass over each prompt", f"{1e3 * times['passes'] / FACTS:.0f} ms", "1", ""]], ""
    for top, goal in GOALS.items():
        ratio = times[f"top={top}"] / times["passes"]
        rows.append(
            [
                f"`collect(top={top})`",
                f"{1e3 * times[f'top={top}'] / FACTS:.0f} ms",
                f"{ratio:.1f}",
                f"at most {goal:g}",
            ]
        )
        notes += missed(
            f"the price of a fact of collect(top={top}) in passes", ratio, goal, "evaluations are most of it"
        )
    notes += f"\n\nMemory beyond the model with top=300: {peak_memory_mb(lambda: collecting(300)):.0f} MB."
    title = f"collect over {FACTS} facts of SmolLM2-135M, {BATCH} a batch"
    return [(title, table(["task", "time a fact", "forward passes", "goal"], rows) + notes)]
