"""How many operations and waits a trace asks of a device: an accelerator pays for each, so they must not creep up."""

import pytest
import torch
from helpers import zoo
from helpers.counted import Counted, operations, waits

import tl_subvalues as tlsv
from tl_subvalues.tracing.batch import tops_together

pytestmark = pytest.mark.any_release


@pytest.mark.parametrize(
    ("layers", "dtype", "most"), [(2, torch.float32, 4.7), (30, torch.float32, 2.3), (30, torch.bfloat16, 2.7)]
)
def test_of_a_trace_and_its_searches(layers: int, dtype: torch.dtype, most: float) -> None:
    """Beside those of the forward pass; 5% above what was counted when this was written."""
    model, tokens = zoo.model("llama", dtype=dtype, num_hidden_layers=layers), torch.tensor([[3, 4, 5, 6, 7]])

    def work() -> None:
        trace = tlsv.trace(model, tokens, 5)
        trace.ffn_neurons(top=5)
        trace.attn_neurons(top=5)

    with torch.no_grad():
        forward = operations(lambda: model(tokens))
    assert operations(work) <= most * forward


@pytest.mark.parametrize(("position", "layers"), [(6, 2), (6, 30), (2, 30)])
def test_of_what_the_host_waits_for(position: int, layers: int) -> None:
    """As much for many layers as for few, and where positions come after the trace's own; 31 when this was written."""
    model, tokens = zoo.model("llama", num_hidden_layers=layers), torch.arange(3, 10)

    def work(trace: tlsv.Trace) -> None:
        trace.ffn_neurons(top=60)
        trace.attn_neurons(top=60)

    counted = waits(model, tokens, position, 5, work)
    assert 20 <= sum(counted.values()) <= 34, counted


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

    assert operations(lambda: work(12)) < 9 * operations(lambda: work(1))
    assert products(12) < 1.25 * products(2)
