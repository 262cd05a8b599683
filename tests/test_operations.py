"""How many operations and waits a trace asks of a device: an accelerator pays for each, so they must not creep up."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from helpers import zoo
from torch.utils._python_dispatch import TorchDispatchMode

import tl_subvalues as tlsv
from tl_subvalues.tracing.batch import tops_together

# Where the host waits for a result.
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
    """Operations, and waits among them."""
    work()  # what is made once is not of interest
    with Counted() as counted:
        work()
    return sum(counted.names.values()), sum(counted.names[name] for name in WAITS)


def test_of_a_trace_and_its_searches() -> None:
    """Per layer of the model, beside the forward pass; 10% above what was counted when this was written."""
    model, tokens = zoo.model("llama"), torch.tensor([[3, 4, 5, 6, 7]])

    def work() -> None:
        trace = tlsv.trace(model, tokens, 5)
        trace.ffn_neurons(top=5)
        trace.attn_neurons(top=5)

    with torch.no_grad():
        forward, _ = count(lambda: model(tokens))
    operations, waits = count(work)
    assert operations <= 5.5 * forward
    assert waits <= 33


def test_of_a_batch() -> None:
    """Products with weights and vocabulary are made once for all; what each prompt has of its own is small."""
    model = zoo.model("llama")
    prompts = [[3 + i, 4, 5 + i, 6, 7] for i in range(12)]

    def work(n: int) -> None:
        traces = tlsv.trace_batch(model, prompts[:n], [5] * n).traces
        tops_together(traces, ("ffn_neuron", "attn_neuron", "head"), 5)

    def products(n: int) -> int:
        work(n)
        with Counted() as counted:
            work(n)
        return counted.names["aten::mm"] + counted.names["aten::addmm"]

    one, _ = count(lambda: work(1))
    twelve, _ = count(lambda: work(12))
    assert twelve < 9 * one
    assert products(12) < 1.25 * products(1)
