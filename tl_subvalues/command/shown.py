"""What every report says before its tables: what was asked, of which model, and what came out."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from tl_subvalues.model_view import decode_text
from tl_subvalues.tracing.trace import Trace

VERSIONS = ("tl-subvalues", "transformer_lens", "transformers", "torch")


@dataclass(frozen=True)
class Shown:
    """What was asked, what came out, and the tables; of a trace or of its effects."""

    model: str
    dtype: str  # of the weights
    versions: dict[str, str]
    prompt: str
    scale: str
    tokens: list[str]
    token_ids: list[int]
    bos: bool  # whether the prompt begins with the model's BOS token
    position: int
    target: str  # its first word
    target_id: int
    target_tokens: list[str]
    target_ids: list[int]
    target_chosen: bool  # by the model, as its most probable next token
    against_tokens: list[str] | Literal["rest"] | None
    against_ids: list[int] | Literal["rest"] | None
    measure: str
    log_prob: float
    prob: float
    log_prob_diff: float | None
    rank: int
    tables: dict[str, pd.DataFrame]
    legend: list[str]  # what columns mean, a line each
    notes: list[str]  # why a table or a column is missing, what was left out
    warnings: list[str]

    @property
    def summary(self) -> str:
        """One line under what came out."""
        raise NotImplementedError


def headline(trace: Trace, model: str, chosen: bool, warnings: Sequence[str]) -> dict[str, Any]:
    """The fields of `Shown` before its tables, and what was warned of.

    Args:
        trace: what is reported.
        model: what the user calls it.
        chosen: whether the target is the model's own choice.
        warnings: what was said on the way.
    """
    ids = trace.tokens.tolist()
    return {
        "model": model,
        "dtype": str(trace.run.view.dtype).removeprefix("torch."),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "prompt": decode_text(trace.run.view, ids),
        "scale": trace.scale,
        "tokens": trace.str_tokens,
        "token_ids": ids,
        "bos": ids[0] == getattr(getattr(trace.model, "tokenizer", None), "bos_token_id", None),
        "position": trace.position,
        "target": trace.target_token,
        "target_id": trace.target_id,
        "target_tokens": trace.target_tokens,
        "target_ids": trace.target_ids,
        "target_chosen": chosen,
        "against_tokens": trace.against_tokens,
        "against_ids": trace.against_ids,
        "measure": trace.measure,
        "log_prob": trace.log_prob,
        "prob": trace.prob,
        "log_prob_diff": trace.log_prob_diff,
        "rank": trace.rank,
        "warnings": list(warnings),
    }


def plain(value: Any) -> Any:
    """For JSON: numpy numbers as Python's, what is missing as null."""
    return None if value is pd.NA else value.item()
