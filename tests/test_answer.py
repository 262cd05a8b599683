"""Answers of several tokens."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view import ModelView

pytestmark = pytest.mark.any_release


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_log_probs_add_up_to_the_answer_s(family: str) -> None:
    """One trace a token, each after the answer so far; the sum is that of one run over the whole text."""
    model = zoo.model(family)
    traces = tlsv.trace_answer(model, "w3 w4 w5", "w6 w7 w8", prepend_bos=False)
    assert [trace.str_tokens for trace in traces] == [[f"w{i}" for i in range(3, end)] for end in (6, 7, 8)]
    assert [trace.target_token for trace in traces] == ["w6", "w7", "w8"]
    with torch.no_grad():
        own = model(torch.tensor([[3, 4, 5, 6, 7, 8]]))[0].double().log_softmax(-1)
    expected = [float(own[at, at + 4]) for at in (2, 3, 4)]
    assert [trace.log_prob for trace in traces] == pytest.approx(expected, abs=1e-5)
    assert sum(trace.log_prob for trace in traces) == pytest.approx(sum(expected), abs=1e-5)
    assert traces.ffn_neurons(top=4)["prompt"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    by_ids = tlsv.trace_answer(model, [3, 4, 5], torch.tensor([6, 7]))
    assert [trace.log_prob for trace in by_ids] == pytest.approx(expected[:2], abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_tokens_share_a_run(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the whole, and one of the shortest beginning alone, which answers the same."""
    model, lengths = zoo.model(family), list[int]()
    run = ModelView.run

    def counted(self: ModelView, tokens: torch.Tensor, positions: Sequence[int]) -> Any:
        lengths.append(len(tokens))
        return run(self, tokens, positions)

    monkeypatch.setattr(ModelView, "run", counted)
    tlsv.trace_answer(model, [3, 4, 5], [6, 7, 8])
    assert lengths == [5, 3]


def test_the_prompt_s_bos_is_the_prompt_s_alone() -> None:
    """A BOS token goes in front of the prompt and of nothing else."""
    traces = tlsv.trace_answer(zoo.model("llama"), "w3 w4", "w6 w7", prepend_bos=True)
    assert [trace.tokens.tolist() for trace in traces] == [[0, 3, 4], [0, 3, 4, 6]]


def test_bad_answers() -> None:
    """No tokens, words outside the vocabulary, more than the model can read."""
    model = zoo.model("llama")
    for answer, says in (("", "no tokens"), ([], "no tokens"), ([99], "outside the vocabulary"), ([5] * 70, "64")):
        with pytest.raises(ValueError, match=says):
            tlsv.trace_answer(model, [3, 4], answer)
