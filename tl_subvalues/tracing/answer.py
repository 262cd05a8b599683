"""An answer of several tokens: one trace for each, with the answer so far as its prompt."""

from typing import Any

import torch

from tl_subvalues.model_view import answer_tokens, prompt_tokens, view_of
from tl_subvalues.readout.readout import Scale
from tl_subvalues.tracing.batch import TraceBatch
from tl_subvalues.tracing.prompt import trace


def trace_answer(
    model: Any, prompt: Any, answer: Any, *, scale: Scale = "frozen", prepend_bos: bool | None = None
) -> TraceBatch:
    """Trace every token of an answer in turn; their log-probs add up to the answer's.

    Args:
        model: a TransformerLens model.
        prompt: text or token ids, as `trace` takes them.
        answer: text (mind its leading space) or token ids. Text is split into tokens on its own, not with the prompt.
        scale: as in `trace`.
        prepend_bos: as in `trace`; for the prompt.

    Returns:
        One `Trace` a token, in order: trace i predicts answer token i after the prompt and the tokens before it.
        Tables of all of them at once have a column `prompt`, the token's number.

    Raises:
        UnsupportedModelError: as `trace`.
        ValueError: as `trace`; and for an answer without tokens.
    """
    view = view_of(model)
    tokens, wanted = prompt_tokens(view, prompt, prepend_bos), answer_tokens(view, answer)
    whole = prompt_tokens(view, torch.cat([tokens, wanted.to(tokens.device)]))  # checks the length, before any run
    starts = range(len(tokens), len(whole))
    return TraceBatch(tuple(trace(model, whole[:at], int(whole[at]), scale=scale) for at in starts))
