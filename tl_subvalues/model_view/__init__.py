"""One view of every model that TransformerLens makes: the only room that knows its classes and releases.

`view_of(model)` takes a TransformerBridge (raw or in compatibility mode) or a HookedTransformer and answers in
the method's words: weights and norms per layer (`Attention`, `FFN`, `MixtureOfExperts`), activations of one run
(`Activations`), the pieces of the readout (`ReadoutPieces`), tokens. What follows after this room sees tensors only.
"""

from tl_subvalues.model_view.activations import Activations
from tl_subvalues.model_view.checks import (
    check_cached_logits,
    check_coefficients,
    check_experts,
    check_final_scale,
    check_finite,
    check_readout,
    check_run,
    check_sources,
    check_sums,
    check_values,
    mixing_errors,
    sum_tolerance,
    unknown_sources,
)
from tl_subvalues.model_view.experts import Expert, MixtureOfExperts, Routed
from tl_subvalues.model_view.layers import Layer
from tl_subvalues.model_view.loading import load_named
from tl_subvalues.model_view.releases import require_supported_release, shows_a_copy
from tl_subvalues.model_view.tokens import (
    answer_tokens,
    decode_each,
    decode_text,
    not_one_token,
    prompt_tokens,
    resolve_target,
    spaced_ids,
    word_ids,
)
from tl_subvalues.model_view.view import ModelView, view_of
from tl_subvalues.model_view.weights import FFN, Attention, ReadoutPieces

__all__ = [
    "FFN",
    "Activations",
    "Attention",
    "Expert",
    "Layer",
    "MixtureOfExperts",
    "ModelView",
    "ReadoutPieces",
    "Routed",
    "answer_tokens",
    "check_cached_logits",
    "check_coefficients",
    "check_experts",
    "check_final_scale",
    "check_finite",
    "check_readout",
    "check_run",
    "check_sources",
    "check_sums",
    "check_values",
    "decode_each",
    "decode_text",
    "load_named",
    "mixing_errors",
    "not_one_token",
    "prompt_tokens",
    "require_supported_release",
    "resolve_target",
    "shows_a_copy",
    "spaced_ids",
    "sum_tolerance",
    "unknown_sources",
    "view_of",
    "word_ids",
]
