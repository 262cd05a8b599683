"""From a prompt to its trace: the run, and the checks that it is what the method takes it for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.run import Run
from tl_subvalues.model_view import (
    Activations,
    ModelView,
    check_cached_logits,
    check_final_scale,
    check_finite,
    check_readout,
    check_run,
    check_sums,
    decode_each,
    prompt_tokens,
    view_of,
)
from tl_subvalues.model_view.indexing import resolve_index
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.asked import Asked, asked
from tl_subvalues.readout.readout import Readout, Scale, log_probs_together, require_scale
from tl_subvalues.readout.targets import Target
from tl_subvalues.tracing.spaces import warn_of_misplaced_spaces
from tl_subvalues.tracing.trace import Trace


def trace(
    model: Any,
    prompt: Any,
    target: Any = None,
    *,
    against: Any = None,
    position: SupportsIndex = -1,
    scale: Scale = "frozen",
    prepend_bos: bool | None = None,
    cache: Any = None,
) -> Trace:
    """Trace a target through one prompt: which layers, heads and neurons raise its log-probability.

    Args:
        model: a TransformerLens model (TransformerBridge, raw or in compatibility mode, or HookedTransformer).
        prompt: text, or token ids (list, [pos] or [1, pos] tensor).
        target: text of exactly one token, or a token id; a list of these, for any of them; or None, the model's most
            probable next token.
        against: None, or what the target is measured against: a word, a list of words, or "rest", all others. The
            measure is then log p(target) − log p(against), for two single words TransformerLens's logit difference.
        position: where the target is predicted; negative counts from the end.
        scale: "frozen" holds the final norm's scale at this run's final residual stream (the paper's way), "recomputed"
            takes it from whatever is read (the logit lens).
        prepend_bos: goes to `model.to_tokens`; None is the model's own default.
        cache: an ActivationCache made earlier for the same prompt. Without one the model runs once. What is traced is
            the run that the cache holds: of a run with interventions, that run. Tables read the model's weights when
            they are made, and refuse if these have changed since.

    Raises:
        UnsupportedModelError: if the model's blocks or readout do not add up to what it computes.
        ValueError: for a bad prompt, target, position or scale, a cache of another prompt or of several, a model in
            training mode, or NaN in the residual stream.
        KeyError: if the cache lacks hooks; it lists them all.

    Example:
        >>> model = tlsv.load_model()
        >>> trace = tlsv.trace(model, "The capital of France is", " Paris")
        >>> trace.rank, round(trace.prob, 2)
        (1, 0.77)
        >>> trace.heads(top=1)["label"].item()
        'L23H4'
        >>> trace = tlsv.trace(model, "The capital of France is", " Paris", against=" Rome")
        >>> round(trace.log_prob_diff, 2)
        7.31
    """
    view = view_of(model)
    require_scale(scale)
    tokens = prompt_tokens(view, prompt, prepend_bos)
    wanted = asked(view, target, against)
    at = resolve_index(position, len(tokens), "position")
    if cache is None:
        logits, cache = view.run_at(tokens, at)
        made = trace_of_run(view, tokens, wanted, at, scale, cache, logits)
        warn_of_misplaced_spaces(made, wanted)
        return made
    _require_same_prompt(view, Activations(view, cache), tokens)
    made = trace_of_run(view, tokens, wanted, at, scale, cache, None)
    check_cached_logits(view, Activations(view, cache), at)
    _check_readout_anew(view, tokens)
    warn_of_misplaced_spaces(made, wanted)
    return made


@dataclass(frozen=True)
class Question:
    """A target at a place of a prompt."""

    tokens: Int[Tensor, " pos"]
    wanted: Asked
    position: int


@no_autocast_no_grad
def trace_of_run(
    view: ModelView,
    tokens: Int[Tensor, " pos"],
    wanted: Asked,
    position: int,
    scale: Scale,
    cache: Any,
    logits: Float[Tensor, " vocab"] | None,
) -> Trace:
    """The trace of a run, its sums checked and, where its logits at the position are known, its readout."""
    check_run(view, Activations(view, cache), position)
    (made,) = _traces(view, [Question(tokens, wanted, position)], scale, [(logits, cache)])
    return made


@no_autocast_no_grad
def traces_of_prompts(view: ModelView, questions: Sequence[Question], scale: Scale) -> list[Trace]:
    """Traces of several prompts, run, checked and read together: each is as `trace_of_run` makes it, to rounding."""
    positions = [question.position for question in questions]
    batch = view.run_batch([question.tokens for question in questions], positions)
    from_the_end = {question.position - len(question.tokens) for question in questions}
    if batch.whole is None or len(from_the_end) > 1:
        for question, (_, cache) in zip(questions, batch.runs, strict=True):
            check_run(view, Activations(view, cache), question.position)
    else:  # padded on the left, so that all ask about the same place of the batch
        for _, cache in batch.runs:
            check_finite(view, Activations(view, cache))
        check_sums(view, Activations(view, batch.whole), from_the_end.pop())
    return _traces(view, questions, scale, batch.runs)


def _traces(
    view: ModelView, questions: Sequence[Question], scale: Scale, runs: Sequence[tuple[Tensor | None, Any]]
) -> list[Trace]:
    """Traces of runs whose sums are checked; a run's logits, where they are known, check its readout."""
    activations = [Activations(view, cache) for _, cache in runs]
    frozen, finals = [], []
    for question, one in zip(questions, activations, strict=True):
        check_final_scale(view, one, question.position)
        frozen.append(Readout.frozen_at(view, one, question.position))
        finals.append(one.final_residual(question.position)[0])
    read = zip(questions, runs, activations, frozen, log_probs_together(frozen, finals), strict=True)
    traces = []
    for question, (logits, cache), one, readout, log_probs in read:
        if logits is not None:
            check_readout(view, log_probs, logits)
        target = question.wanted.settled(view, log_probs)
        of_words = Target(target.ids).value(log_probs)
        log_prob, prob, value = torch.stack([of_words, of_words.exp(), target.value(log_probs)]).tolist()
        traces.append(
            Trace(
                tokens=question.tokens,
                str_tokens=decode_each(view, question.tokens.tolist()),
                target=target,
                target_tokens=decode_each(view, target.ids),
                position=question.position,
                log_prob=log_prob,
                prob=prob,
                rank=int(target.rank(log_probs)),
                value=value,
                scale=scale,
                model=view.model,
                cache=cache,
                readout=readout if scale == "frozen" else Readout(view, scale="recomputed"),
                run=Run(view, one, question.position),
            )
        )
    return traces


def retargeted(trace: Trace, target: Any, against: Any = None) -> Trace:
    """Another target through the same run.

    Raises:
        ValueError: for a bad target, and if the model's weights have changed since.
    """
    trace.require_unchanged()
    view = trace.run.view
    return trace_of_run(
        view, trace.tokens, asked(view, target, against), trace.position, trace.scale, trace.cache, None
    )


def _require_same_prompt(view: ModelView, activations: Activations, tokens: Int[Tensor, " pos"]) -> None:
    """Raise unless a given cache is complete, of one prompt, and of this one."""
    activations.require(view.hooks())
    batch, n_positions = activations.batch_and_positions
    if batch != 1:
        raise ValueError(f"the cache holds a batch of {batch} prompts where one is needed; run the prompts one by one.")
    if n_positions != len(tokens):
        raise ValueError(
            f"the cache belongs to another prompt: it has {n_positions} positions, the prompt {len(tokens)} tokens "
            "(was one of them made with a BOS token, or with pos_slice?)."
        )
    cached = activations.residual(0, "attn")[0]
    own = view.first_residual(tokens).to(cached)
    if not torch.allclose(cached, own, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
        differing = int((cached - own).abs().amax(-1).argmax())
        raise ValueError(
            f"the cache belongs to another prompt: what enters layer 0 differs at position {differing}; make it with "
            "these tokens, or leave cache=None."
        )


def _check_readout_anew(view: ModelView, tokens: Int[Tensor, " pos"]) -> None:
    """Compare our readout with the model's own logits on a few tokens, where a given cache came without logits."""
    few = tokens[:4]
    (logits,), cache = view.run(few, [len(few) - 1])
    activations = Activations(view, cache)
    readout = Readout.frozen_at(view, activations, -1)
    check_readout(view, readout.log_probs(activations.final_residual(-1)[0]), logits)
