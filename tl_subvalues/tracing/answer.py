"""An answer of several tokens: one trace for each, with the answer so far as its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_subvalues.model_view import ModelView, answer_tokens, decode_text, prompt_tokens, view_of
from tl_subvalues.readout.asked import Asked
from tl_subvalues.readout.readout import Scale, require_scale
from tl_subvalues.tracing.batch import TraceBatch
from tl_subvalues.tracing.prompt import trace_of_run
from tl_subvalues.tracing.trace import Trace


def trace_answer(
    model: Any,
    prompt: Any,
    answer: Any,
    *,
    against: Any = None,
    scale: Scale = "frozen",
    prepend_bos: bool | None = None,
) -> TraceBatch:
    """Trace every token of an answer in turn; their log-probs add up to the answer's.

    Args:
        model: a TransformerLens model.
        prompt: text or token ids, as `trace` takes them.
        answer: text (mind its leading space) or token ids. Text is split into tokens on its own, not with the prompt.
        against: another answer, to see what speaks for this one rather than that. See `AnswerContrast`.
        scale: as in `trace`.
        prepend_bos: as in `trace`; for the prompt.

    Returns:
        One `Trace` a token, in order: trace i predicts answer token i after the prompt and the tokens before it, all
        of one run. Tables of all of them at once have a column `prompt`, the token's number. With `against`, an
        `AnswerContrast`.

    Raises:
        UnsupportedModelError: as `trace`.
        ValueError: as `trace`; for an answer without tokens; and for two answers of which one begins as the other, for
            the longer one is then part of what the shorter one's probability is of.

    Example:
        >>> traces = tlsv.trace_answer(tlsv.load_model(), "The capital of France is", " Paris.")
        >>> [one.target_token for one in traces]
        [' Paris', '.']
    """
    view = view_of(model)
    require_scale(scale)
    tokens, wanted = prompt_tokens(view, prompt, prepend_bos), answer_tokens(view, answer)
    if against is None:
        return TraceBatch(tuple(_traces(view, tokens, wanted, 0, scale)))
    other = answer_tokens(view, against)
    shared = _shared(wanted, other)
    if shared == min(len(wanted), len(other)):
        texts = [repr(decode_text(view, ids.tolist())) for ids in (wanted, other)]
        raise ValueError(
            f"{texts[0]} and {texts[1]} are the same as far as the shorter one goes, so one answer is part of the "
            "other and there is no contrast between them; pass answers that part."
        )
    fork, *own = _traces(view, tokens, wanted, shared, scale, int(other[shared]))
    others = _traces(view, tokens, other, shared + 1, scale)
    traces = (fork, *own, *others)
    return AnswerContrast(traces, (1,) * (1 + len(own)) + (-1,) * len(others))


@dataclass(frozen=True, eq=False)
class AnswerContrast(TraceBatch):
    """Two answers token by token: log p(answer) − log p(other) = Σ sign · measure over the traces.

    Tokens that both answers begin with cancel and are left out. The first trace is where they part, one token against
    the other in the same context; from there on the contexts differ, so that the tokens that follow are traced by
    themselves, first the answer's (sign 1), then the other's (sign −1).
    """

    signs: tuple[int, ...]

    @property
    def log_prob_diff(self) -> float:
        """log p(answer) − log p(other), in nats."""
        return sum(sign * trace.value for sign, trace in zip(self.signs, self.traces, strict=True))


def _traces(
    view: ModelView,
    prompt: Int[Tensor, " pos"],
    answer: Int[Tensor, " token"],
    first: int,
    scale: Scale,
    against: int | None = None,
) -> list[Trace]:
    """One run, and a trace of each answer token from `first` on, with all before it as its prompt.

    `against` is for the first of them.
    """
    if first == len(answer):
        return []
    whole = prompt_tokens(view, torch.cat([prompt, answer[:-1].to(prompt.device)]))
    lengths = range(len(prompt) + first, len(prompt) + len(answer))
    traces = []
    for length, (logits, cache) in zip(lengths, view.run_prefixes(whole, lengths), strict=True):
        number = length - len(prompt)
        wanted = Asked((int(answer[number]),), None if against is None or number > first else (against,))
        traces.append(trace_of_run(view, whole[:length], wanted, length - 1, scale, cache, logits))
    return traces


def _shared(one: Int[Tensor, " a"], other: Int[Tensor, " b"]) -> int:
    """How many tokens two answers begin with in common."""
    pairs: Sequence[tuple[int, int]] = list(zip(one.tolist(), other.tolist(), strict=False))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), len(pairs))
