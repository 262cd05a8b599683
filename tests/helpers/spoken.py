"""Models that have words of the test's own, and what a call warns of."""

import warnings
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from helpers import zoo

PROMPT = [5, 9, 7]


def spoken(model: Any, likely: str, unlikely: str, folder: Path, prompt: list[int] = PROMPT) -> Any:
    """A model whose most probable token after a prompt is one piece of text, and whose least probable is another."""
    logits = model(torch.tensor([prompt]))[0, -1]
    pieces = [(f"<{i}>", -20.0) for i in range(zoo.VOCAB)]
    pieces[int(logits.argmax())], pieces[int(logits.argmin())] = (likely, -1.0), (unlikely, -1.0)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0)),
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<0>"),
    )
    made.save_pretrained(folder)
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return model


def said(call: Any, category: type[Warning]) -> list[str]:
    """The warnings of one category that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if issubclass(warning.category, category)]
