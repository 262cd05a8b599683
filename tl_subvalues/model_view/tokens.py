"""Prompts and targets: text or token ids in, checked token ids out."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tl_subvalues.errors import UnknownWordsWarning, shown_value
from tl_subvalues.model_view.view import ModelView

# Words of a target: each is one readout column.
_MOST_WORDS = 1000
# Pieces of a text of several tokens that a message shows.
_PIECES = 12


def prompt_tokens(view: ModelView, prompt: Any, prepend_bos: bool | None = None) -> Int[Tensor, " pos"]:
    """The token ids of one prompt: text, a list of ids, or a tensor [pos] or [1, pos].

    `prepend_bos` is for text and goes to `model.to_tokens`; None is the model's own default.

    Raises:
        ValueError: for an empty prompt, more than one prompt, an id outside the vocabulary, a prompt longer
            than the model's context, text without a tokenizer, or anything else than text or integers.
    """
    if isinstance(prompt, str):
        tokens = _encode(view, prompt, prepend_bos)
    else:
        if prepend_bos:
            raise ValueError("prepend_bos=True is for text; put the BOS id in front of the token ids yourself.")
        tokens = _as_ids(prompt)
    if tokens.numel() == 0:
        raise ValueError(
            "the prompt is empty; pass text, or at least one token id (the BOS id to trace from BOS alone)."
        )
    _require_in_vocabulary(view, tokens.tolist(), int(getattr(view.model.cfg, "d_vocab", view.readout.d_vocab)))
    n_ctx = getattr(view.model.cfg, "n_ctx", None)
    if n_ctx and len(tokens) > n_ctx:
        raise ValueError(
            f"the prompt has {len(tokens)} tokens, more than the {n_ctx} that {view.name} can read; shorten it."
        )
    return tokens.to(view.model.cfg.device or view.device)


def resolve_target(view: ModelView, target: Any, what: str = "target") -> int:
    """The id of a target, or of another word, given as an id or as text of exactly one token.

    Args:
        view: the model.
        target: the word.
        what: it is called in messages.

    Raises:
        ValueError: for text of no or several tokens (its pieces are shown) or of a word that the vocabulary lacks, an
            id outside the vocabulary, or anything else.
    """
    if isinstance(target, str):
        wrong = not_one_token(
            target, lambda text: _encode_quietly(view, text), lambda token: decode_each(view, [token])[0], what
        )
        if wrong:
            raise ValueError(wrong)
        (token,) = _encode_quietly(view, target)
        _require_known(view, target, token, what)
        return token
    if isinstance(target, Tensor) and target.numel() == 1 and not (target.is_floating_point() or target.is_complex()):
        target = target.item()
    if isinstance(target, bool) or not isinstance(target, Integral):
        raise ValueError(f"a {what} is a token id or text of one token, got {type(target).__name__} {target!r}.")
    _require_in_vocabulary(view, [int(target)], view.readout.d_vocab)
    return int(target)


def word_ids(view: ModelView, words: Any, what: str, each: str = "target") -> tuple[int, ...]:
    """The ids of one word or of several: a word as `resolve_target` takes it, or a list of such.

    Args:
        view: the model.
        words: one or several.
        what: they are called in messages, such as "target".
        each: what one of them is called.

    Raises:
        ValueError: as `resolve_target`; for an empty list, too long a list, and a word that is there twice.
    """
    if getattr(words, "ndim", 0) == 1 and hasattr(words, "tolist"):  # a tensor, a numpy array, a pandas column
        words = words.tolist()
    if isinstance(words, str) or not isinstance(words, Sequence):
        return (resolve_target(view, words, each),)
    if not words:
        raise ValueError(f"{what} is an empty list; name at least one word.")
    if len(words) > _MOST_WORDS:
        raise ValueError(f"{what} has {len(words)} words, more than the {_MOST_WORDS} that are read one by one.")
    ids = tuple(resolve_target(view, word, each) for word in words)
    twice = next((token for token, times in Counter(ids).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"{what} has {decode_each(view, [twice])[0]!r} (token id {twice}) twice; name each word once.")
    return ids


def spaced_ids(view: ModelView, words: Any) -> tuple[tuple[int, int], ...]:
    """Of words given as text without a leading space, the id and that of the word with one, where it is another token.

    Args:
        view: the model.
        words: as `word_ids` took them.
    """
    found = []
    for word in [words] if isinstance(words, str) else words if isinstance(words, Sequence) else []:
        if isinstance(word, str) and word and not word[0].isspace():
            ids = [_encode_quietly(view, text) for text in (word, f" {word}")]
            if ids[0] != ids[1] and len(ids[1]) == 1:
                found.append((ids[0][0], ids[1][0]))
    return tuple(found)


def answer_tokens(view: ModelView, answer: Any) -> Int[Tensor, " pos"]:
    """The token ids of an answer: text, tokenised on its own and without a BOS token, or ids.

    Raises:
        ValueError: as `prompt_tokens`, and for an answer without tokens.
    """
    tokens = _encode(view, answer, prepend_bos=False) if isinstance(answer, str) else _as_ids(answer)
    if tokens.numel() == 0:
        raise ValueError("the answer has no tokens; pass text, or at least one token id.")
    _require_in_vocabulary(view, tokens.tolist(), view.readout.d_vocab)
    return tokens


def decode_each(view: ModelView, ids: Sequence[int]) -> list[str]:
    """Each id's own text; `<id>` where the model has no tokenizer."""
    tokenizer = getattr(view.model, "tokenizer", None)
    if tokenizer is None:
        return [f"<{i}>" for i in ids]
    return [tokenizer.decode([int(i)], clean_up_tokenization_spaces=False) for i in ids]


def decode_text(view: ModelView, ids: Sequence[int]) -> str:
    """The ids' text as a whole: with the spaces between words that each word alone may lack."""
    tokenizer = getattr(view.model, "tokenizer", None)
    if tokenizer is None:
        return "".join(decode_each(view, ids))
    text: str = tokenizer.decode([int(i) for i in ids], clean_up_tokenization_spaces=False)
    return text


def _encode(view: ModelView, text: str, prepend_bos: bool | None) -> Int[Tensor, " pos"]:
    if getattr(view.model, "tokenizer", None) is None:
        raise ValueError(f"{view.name} has no tokenizer; pass token ids, or boot the model with tokenizer=.")
    if text == "":
        return torch.zeros(0, dtype=torch.long)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text {shown_value(text)} is not valid Unicode; was it read in another encoding?"
        ) from error
    # Without truncate=False a long prompt would lose its end without a word.
    keywords: dict[str, Any] = {"truncate": False}
    if prepend_bos is not None:
        if not isinstance(prepend_bos, bool):
            raise ValueError(f"prepend_bos is True, False or None, got {prepend_bos!r}.")
        keywords["prepend_bos"] = prepend_bos
    tokens: Tensor = view.model.to_tokens(text, **keywords)[0]
    return tokens.long()


def _encode_quietly(view: ModelView, word: str) -> list[int]:
    """The ids of a target's text, without a warning of unknown words: an unknown target is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)
        return _encode(view, word, prepend_bos=False).tolist()


def _as_ids(prompt: Any) -> Int[Tensor, " pos"]:
    if isinstance(prompt, Tensor):
        tokens = prompt.detach()
    elif isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], str):
        raise ValueError(f"one prompt is needed, got a list of {len(prompt)} texts; trace them one by one.")
    else:
        try:
            tokens = torch.as_tensor(prompt)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"a prompt is text or a list or tensor of token ids, got {type(prompt).__name__}."
            ) from error
    if tokens.ndim == 2 and tokens.shape[0] == 1:
        tokens = tokens[0]
    if tokens.ndim != 1:
        raise ValueError(
            f"one prompt is needed, got token ids of shape {tuple(tokens.shape)}; pass [pos] or [1, pos], one prompt "
            "at a time."
        )
    if tokens.numel() and (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool):
        raise ValueError(f"token ids are integers, got {tokens.dtype}.")
    return tokens.long()


def _require_in_vocabulary(view: ModelView, ids: list[int], size: int) -> None:
    outside = [i for i in ids if not 0 <= i < size]
    if outside:
        raise ValueError(
            f"token ids {outside[:5]} are outside the vocabulary of {view.name}, which runs from 0 to {size - 1}."
        )


def _require_known(view: ModelView, target: str, token: int, what: str) -> None:
    tokenizer = view.model.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if token == unknown and tokenizer.decode([token]).strip() != target.strip():
        raise ValueError(
            f"the {what} {shown_value(target)} is not in the vocabulary of {view.name}: it would be read as "
            f"{tokenizer.unk_token!r}, which you can trace by that name."
        )


def not_one_token(
    target: str, encode: Callable[[str], Sequence[int]], decode: Callable[[int], str], what: str = "target"
) -> str | None:
    """What is wrong with a word's text, in a sentence that shows its pieces; None if it is one token."""
    ids = encode(target)
    if len(ids) == 1:
        return None
    if not ids:
        return f"the {what} {shown_value(target)} has no tokens; pass text of one token, or a token id."
    pieces = [f"{decode(token)!r} ({token})" for token in ids[:_PIECES]]
    listed = " + ".join([*pieces, "…"] if len(ids) > _PIECES else pieces)
    message = f"the {what} {shown_value(target)} is {len(ids)} tokens, {listed}; exactly one is needed"
    for other in (f" {target}", target.strip()):
        if other != target and other and len(found := encode(other)) == 1:
            return f"{message}: {other!r} is one token ({found[0]})."
    return f"{message}: pass one of the pieces (in Python, its id will do)."
