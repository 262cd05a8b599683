"""How many operations a trace and both searches ask of a device, and for how many results the host waits."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from common import missed, table
from torch.utils._python_dispatch import TorchDispatchMode

import tl_subvalues as tlsv

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def count(work: Callable[[], Any]) -> tuple[int, int]:
    """Operations of a second call, and waits among them."""
    work()
    with Counted() as counted:
        work()
    return sum(counted.names.values()), sum(counted.names[name] for name in WAITS)


def run() -> list[tuple[str, str]]:
    """One row each for the forward pass, a trace, and a trace with both searches."""
    model, prompt = tlsv.load_model(device="cpu"), "The capital of France is"
    tokens = model.to_tokens(prompt)

    def forward() -> None:
        with torch.no_grad():
            model(tokens)

    def searched() -> None:
        trace = tlsv.trace(model, prompt, " Paris")
        trace.ffn_neurons(top=300)
        trace.attn_neurons(top=300)

    of = {
        "forward pass": count(forward),
        "trace": count(lambda: tlsv.trace(model, prompt, " Paris")),
        "trace and both top 300": count(searched),
    }
    plain, waits = of["forward pass"][0], of["trace and both top 300"][1]
    goals = {"trace and both top 300": "at most 2.5, and 40"}
    rows = [[what, f"{n:,}", f"{n / plain:.2f}", str(w), goals.get(what, "")] for what, (n, w) in of.items()]
    text = table(["task", "operations", "ratio", "results waited for", "goal"], rows)
    ratio = of["trace and both top 300"][0] / plain
    text += missed("operations in those of a forward pass", ratio, 2.5, "layers are worked through one by one")
    return [
        (
            "Operations on SmolLM2-135M",
            text + missed("results waited for", waits, 40, "checks that are judged one by one"),
        )
    ]


if __name__ == "__main__":
    for title, text in run():
        print(f"## {title}\n\n{text}\n", flush=True)
