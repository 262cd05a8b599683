"""Architectures for which TransformerLens computes another model than Hugging Face: a trace warns of them.

Found by comparing log-probabilities of small random models with Hugging Face's (docs/models.md).
"""

import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tl_subvalues.errors import OtherModelWarning
from tl_subvalues.model_view.releases import TESTED, installed_release, is_bridge, model_name


@dataclass(frozen=True)
class Fault:
    """One architecture, and where its log-probabilities were seen to differ."""

    architecture: str
    nats: float  # how far log-probabilities were apart
    seen: tuple[tuple[int, int], ...]  # in these releases, of those that were measured
    processed: bool = False  # only in compatibility mode
    folded: bool = False  # only where norms were folded into the weights
    setting: str | None = None  # only where this is set in Hugging Face's configuration

    @property
    def way_out(self) -> str:
        """What to do instead."""
        if self.processed:
            unfolded = ", or call enable_compatibility_mode(fold_ln=False)" if self.folded else ""
            return f"boot it anew and use it raw{unfolded}"
        if self.seen[-1] < TESTED[1]:
            return f"use TransformerLens {_dotted(TESTED[1])}, where they agree"
        return "compare its log-probabilities with Hugging Face's before you rely on it"


_OLD, _BOTH = ((3, 9),), ((3, 9), (4, 3))
FAULTS = (
    Fault("BitNetForCausalLM", 5.0, _BOTH, processed=True),
    Fault("Ernie4_5_MoeForCausalLM", 1.0, _BOTH[1:], processed=True, folded=True),
    Fault("Glm4MoeForCausalLM", 1.0, _BOTH, processed=True, folded=True),
    Fault("CohereForCausalLM", 0.5, _OLD),
    Fault("Cohere2ForCausalLM", 0.7, _OLD),
    Fault("HunYuanDenseV1ForCausalLM", 3.0, _OLD),
    Fault("FalconForCausalLM", 6.0, _BOTH, setting="new_decoder_architecture"),
)


def warn_of_faults(model: Any) -> None:
    """Warn where TransformerLens, this release or a later one, was seen to compute another model than Hugging Face."""
    if not is_bridge(model):
        return
    processed = bool(getattr(model, "_weights_processed", False))
    if processed:
        _warn_of_folded_sinks(model)
    installed = installed_release()
    config = getattr(getattr(model, "original_model", None), "config", None)
    for fault in FAULTS:
        applies = (
            installed is not None
            and installed <= fault.seen[-1]
            and fault.architecture == getattr(model.cfg, "architecture", None)
            and (processed or not fault.processed)
            and (not fault.folded or _norms_are_folded(model))
            and (fault.setting is None or bool(getattr(config, fault.setting, False)))
        )
        if applies:
            where = " in compatibility mode" if fault.processed else ""
            releases = " and ".join(_dotted(release) for release in fault.seen)
            warnings.warn(
                f"{model_name(model)}: TransformerLens computes another model here than Hugging Face does{where}: "
                f"log-probabilities of a small random one were {fault.nats:g} nats apart (measured on {releases}). "
                f"Decomposed is what it computes; {fault.way_out}.",
                OtherModelWarning,
                stacklevel=2,
            )


def _norms_are_folded(model: Any) -> bool:
    """Whether the gains before the FFNs are all one, as folding leaves them."""
    norms = [getattr(block._modules.get("ln2"), "original_component", None) for block in model.blocks]
    gains = [getattr(norm, "weight", None) for norm in norms]
    return all(bool((gain == 1).all()) for gain in gains if isinstance(gain, Tensor))


def _warn_of_folded_sinks(model: Any) -> None:
    """Folding value biases takes the rows of a pattern to sum to one; with attention sinks (GPT-OSS) they do not.

    Log-probs of a small random model moved by 1 nat. Without value biases, nothing does.
    """
    own = [getattr(block._modules.get("attn"), "original_component", None) for block in model.blocks]
    with_sinks = [attn for attn in own if isinstance(getattr(attn, "sinks", None), Tensor)]
    biases = [getattr(getattr(attn, "v_proj", None), "bias", None) for attn in with_sinks]
    if any(isinstance(bias, Tensor) and not bias.any() for bias in biases):
        warnings.warn(
            f"{model_name(model)} has attention sinks, with which TransformerLens's compatibility mode computes "
            "another model: it folds value biases as if the rows of the pattern summed to one. Boot it anew and use it "
            "raw, or call enable_compatibility_mode(fold_value_biases=False).",
            OtherModelWarning,
            stacklevel=3,
        )


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))
