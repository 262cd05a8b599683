"""Models that TransformerLens itself gets wrong: what it computes is decomposed, and a trace warns of it.

Found by comparing log-probabilities of small random models with Hugging Face's (docs/models.md).
"""

import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tl_subvalues.model_view import host


@dataclass(frozen=True)
class Fault:
    """One architecture that a bridge computes otherwise than Hugging Face."""

    architecture: str
    nats: float  # how far log-probabilities were apart
    processed: bool = False  # only in compatibility mode
    mended: tuple[int, ...] | None = None  # in this release
    setting: str | None = None  # only where this is set in Hugging Face's configuration


FAULTS = (
    Fault("BitNetForCausalLM", 5.0, processed=True),
    Fault("Ernie4_5_MoeForCausalLM", 1.0, processed=True),
    Fault("Glm4MoeForCausalLM", 1.0, processed=True),
    Fault("CohereForCausalLM", 0.5, mended=(4, 3)),
    Fault("Cohere2ForCausalLM", 0.7, mended=(4, 3)),
    Fault("HunYuanDenseV1ForCausalLM", 3.0, mended=(4, 3)),
    Fault("FalconForCausalLM", 6.0, setting="new_decoder_architecture"),
)


def warn_of_faults(model: Any) -> None:
    """Warn where the installed TransformerLens is known to compute another model than Hugging Face."""
    if not host.is_bridge(model):
        return
    processed = bool(getattr(model, "_weights_processed", False))
    if processed:
        _warn_of_folded_sinks(model)
    installed = host.release()
    if installed is None or installed > host.TESTED[1]:
        return
    config = getattr(getattr(model, "original_model", None), "config", None)
    for fault in FAULTS:
        if fault.mended is not None and installed >= fault.mended:
            continue
        if fault.architecture != getattr(model.cfg, "architecture", None) or (fault.processed and not processed):
            continue
        if fault.setting is not None and not getattr(config, fault.setting, False):
            continue
        way_out = "compare its log-probabilities with Hugging Face's before you rely on it"
        if fault.processed:
            way_out = "boot it anew and use it raw"
        elif fault.mended:
            way_out = f"use TransformerLens {'.'.join(map(str, fault.mended))}, where they agree"
        warnings.warn(
            f"{host.model_name(model)}: TransformerLens {'.'.join(map(str, installed))} computes another model "
            f"here than Hugging Face does{' (in compatibility mode)' * fault.processed}: log-probabilities of a small "
            f"random one were {fault.nats:g} nats apart. Decomposed is what it computes; {way_out}.",
            stacklevel=2,
        )


def _warn_of_folded_sinks(model: Any) -> None:
    """Folding value biases takes the rows of a pattern to sum to one; with attention sinks (GPT-OSS) they do not.

    Log-probs of a small random model moved by 1 nat. Without value biases, nothing does.
    """
    own = [getattr(block._modules.get("attn"), "original_component", None) for block in model.blocks]
    with_sinks = [attn for attn in own if isinstance(getattr(attn, "sinks", None), Tensor)]
    biases = [getattr(getattr(attn, "v_proj", None), "bias", None) for attn in with_sinks]
    if any(isinstance(bias, Tensor) and not bias.any() for bias in biases):
        warnings.warn(
            f"{host.model_name(model)} has attention sinks, with which TransformerLens's compatibility mode computes "
            "another model: it folds value biases as if the rows of the pattern summed to one. Boot it anew and use it "
            "raw, or call enable_compatibility_mode(fold_value_biases=False).",
            stacklevel=2,
        )
