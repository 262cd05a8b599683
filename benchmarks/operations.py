"""How many operations a trace and both searches ask of a device, and for how many results the host waits."""

import sys
from pathlib import Path

import torch
from common import missed, table

import tl_subvalues as tlsv

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.counted import operations, waits

PROMPT = "The capital of France is"


def searched(trace: tlsv.Trace) -> None:
    """Both searches."""
    trace.ffn_neurons(top=300)
    trace.attn_neurons(top=300)


def run() -> list[tuple[str, str]]:
    """One row each for the forward pass, a trace, and a trace with both searches."""
    model = tlsv.load_model(device="cpu")
    tokens, target = model.to_tokens(PROMPT), model.to_single_token(" Paris")

    def forward() -> None:
        with torch.no_grad():
            model(tokens)

    of = {
        "forward pass": operations(forward),
        "trace": operations(lambda: tlsv.trace(model, PROMPT, " Paris")),
        "trace and both top 300": operations(lambda: searched(tlsv.trace(model, PROMPT, " Paris"))),
    }
    rows = [[what, f"{n:,}", f"{n / of['forward pass']:.2f}"] for what, n in of.items()]
    ratio = of["trace and both top 300"] / of["forward pass"]
    waited = sum(waits(model, tokens[0], len(tokens[0]) - 1, target, searched).values())
    text = table(["task", "operations", "ratio"], rows)
    text += missed("operations in those of a forward pass", ratio, 2.5, "layers are worked through one by one")
    text += f"\n\nBeside the forward pass, the host would wait {waited} times for an accelerator's results (goal 40).\n"
    return [("Operations on SmolLM2-135M", text)]


if __name__ == "__main__":
    for title, text in run():
        print(f"## {title}\n\n{text}\n", flush=True)
