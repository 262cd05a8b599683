"""Prompts worked through together: bounds, evaluations and checks of all in one give what each prompt gives alone."""

from typing import Any

import pytest
import torch
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.importance.together import rank_together
from tl_subvalues.model_view import view_of
from tl_subvalues.numerics.softmax import Softmax
from tl_subvalues.readout.asked import Asked
from tl_subvalues.tracing import prompt as tracing_prompt
from tl_subvalues.tracing.batch import candidates_together, tops_together

PROMPTS = [[3, 4, 5, 6], [7], [8, 9, 10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, 21]]
# A word, several, one against another, and against the rest: readings of every kind side by side.
TARGETS: list[Any] = [5, [6, 7], 7, 8, 9]
AGAINST: list[Any] = [None, None, 11, "rest", None]
UNITS = ("ffn_neuron", "attn_neuron", "head", "head_position")
TOP = 7


@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "gemma2", "gemma3", "olmo2", "granite", "mixtral", "qwen2_moe", "gpt_neox_parallel"]
)
def test_the_top_of_each_is_its_own(family: str, scale: Any) -> None:
    """In float64, where padding moves nothing: the same labels in the same order, the same increases."""
    model = zoo.model(family, dtype=torch.float64)
    batch = tlsv.trace_batch(model, PROMPTS, TARGETS, against=AGAINST, scale=scale)
    found = tops_together(batch.traces, UNITS, TOP)
    for tops, prompt, target, against in zip(found, PROMPTS, TARGETS, AGAINST, strict=True):
        trace = tlsv.trace(model, prompt, target, against=against, scale=scale)
        for unit, top in tops.items():
            table = getattr(trace, f"{unit}s")(top=TOP)
            assert [label for label, _ in top] == table["label"].tolist()
            assert [increase for _, increase in top] == pytest.approx(
                table[f"{trace.measure}_increase"].tolist(), abs=1e-9
            )


@pytest.mark.parametrize("largest", [True, False])
def test_each_certificate_is_a_search_s(largest: bool) -> None:
    """Both ends of the list are certified for every prompt, and are those of all evaluated."""
    traces = tlsv.trace_batch(zoo.model("llama", dtype=torch.float64), PROMPTS, [5, 6, 7, 8, 9]).traces
    many = [one["ffn_neuron"] for one in candidates_together(traces, ("ffn_neuron",))]
    for one, ranked in zip(many, rank_together(many, TOP, largest), strict=True):
        everything = one.evaluate(torch.arange(len(one)))
        best = torch.topk(everything, TOP, largest=largest).values
        assert torch.equal(ranked.increase, best)
        assert ranked.certificate.method == "bound"
        assert ranked.certificate.evaluated < len(one)
        assert ranked.certificate.last_bound is not None
        left = ranked.certificate.last_bound < best[-1] if largest else ranked.certificate.last_bound > best[-1]
        assert left


def test_vectors_of_several_prompts_keep_their_bits() -> None:
    """An increase is the same to the bit whoever is evaluated beside it."""
    traces = tlsv.trace_batch(zoo.model("llama"), PROMPTS, [5, 6, 7, 8, 9]).traces
    many = [one["ffn_neuron"] for one in candidates_together(traces, ("ffn_neuron",))]
    for one, ranked in zip(many, rank_together(many, TOP), strict=True):
        assert torch.equal(ranked.increase, torch.topk(one.evaluate(torch.arange(len(one))), TOP).values)


def test_a_batch_reads_the_vocabulary_in_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions of all prompts' sites are one product; prompt by prompt they would be as many as prompts."""
    traces = tlsv.trace_batch(zoo.model("llama"), PROMPTS, [5, 6, 7, 8, 9]).traces
    rows, logits = [], Softmax.logits

    def counted(self: Softmax, normed: Tensor) -> Tensor:
        rows.append(len(normed))
        return logits(self, normed)

    monkeypatch.setattr(Softmax, "logits", counted)
    tops_together(traces, ("ffn_neuron", "attn_neuron", "head"), TOP)
    assert rows == [len(PROMPTS) * len(traces[0].run.sites)]


@pytest.mark.parametrize("row", [0, 3])
def test_a_block_that_does_not_add_up_is_refused_for_one_prompt_alone(
    row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prompt's sums are held to its own size: another's large entries do not cover for it."""
    view = view_of(zoo.model("llama"))
    run_batch = type(view).run_batch

    def spoiled(self: Any, prompts: Any, positions: Any) -> Any:
        batch = run_batch(self, prompts, positions)
        small = (row + 1) % len(prompts)
        for name in list(batch.whole.keys()):
            if "hook_resid" in name or name.endswith(("_out", "hook_z", "mlp.hook_post")):
                batch.whole[name][small] *= 1e6  # still adds up, and is large
        batch.whole["blocks.1.hook_mlp_out"][row, -1] += 1e-2
        return batch

    monkeypatch.setattr(type(view), "run_batch", spoiled)
    questions = [
        tracing_prompt.Question(torch.tensor(tokens), Asked((target,)), len(tokens) - 1)
        for tokens, target in zip(PROMPTS, [5, 6, 7, 8, 9], strict=True)
    ]
    with pytest.raises(UnsupportedModelError, match="layer 1"):
        tracing_prompt.traces_of_prompts(view, questions, "frozen")
