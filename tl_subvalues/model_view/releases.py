"""TransformerLens's classes and releases: which is installed, what it exports, what a model of it is called.

Releases differ in what they export: 2.x has no TransformerBridge, 4.x no HookedTransformer (and raises on the
attribute), 3.x has both.
"""

import functools
import importlib.metadata
import warnings
from typing import Any

import torch
from torch import Tensor

from tl_subvalues.errors import SubvaluesWarning, UnsupportedModelError, shown_value

# The oldest and the newest release that the tests ran with.
TESTED = ((2, 18), (4, 3))
# Between them, the first and the last whose TransformerBridge cannot be decomposed: its models are in training mode up
# to 3.5, and 3.6 takes the FFN of Llama and its like for one of another width. pyproject.toml leaves them out.
UNSUPPORTED = ((3, 0), (3, 6))


def installed_release() -> tuple[int, ...] | None:
    """The installed TransformerLens, as (major, minor); None for a checkout, or a version of its own making."""
    try:
        version = importlib.metadata.version("transformer_lens")
        return tuple(int(part) for part in version.split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def require_supported_release() -> None:
    """Refuse the releases that cannot be decomposed, before a model of theirs is blamed for it.

    Raises:
        UnsupportedModelError: the installed TransformerLens is one of them.
    """
    installed = installed_release()
    if installed is not None and UNSUPPORTED[0] <= installed <= UNSUPPORTED[1]:
        version = importlib.metadata.version("transformer_lens")
        raise UnsupportedModelError(
            f"TransformerLens {version} is not supported, for 3.0 to 3.6 do not show all that a decomposition needs; "
            "install a newer one: pip install 'transformer_lens>=3.7'."
        )


@functools.cache
def warn_of_unknown_release() -> None:
    """Warn, once a process, where the installed TransformerLens is none that the tests ran with."""
    installed = installed_release()
    if installed is not None and not TESTED[0] <= installed <= TESTED[1]:
        version = importlib.metadata.version("transformer_lens")
        oldest, newest = (".".join(map(str, bound)) for bound in TESTED)
        warnings.warn(
            f"TransformerLens {version} is outside the range that tl-subvalues was tested with ({oldest} to {newest}). "
            "Every trace still checks its sums and its readout, and refuses a model that does not add up.",
            SubvaluesWarning,
            stacklevel=2,
        )


def bridge_class() -> type | None:
    """TransformerBridge, or None on a release without it."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        return None
    return TransformerBridge


def hooked_class() -> type | None:
    """HookedTransformer, or None on a release without it (4.x raises ImportError on the very attribute)."""
    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        return None
    return HookedTransformer


def is_bridge(model: Any) -> bool:
    """Whether the model is a TransformerBridge."""
    cls = bridge_class()
    return cls is not None and isinstance(model, cls)


def is_hooked(model: Any) -> bool:
    """Whether the model is a HookedTransformer."""
    cls = hooked_class()
    return cls is not None and isinstance(model, cls)


def activation_cache(tensors: dict[str, Any], model: Any) -> Any:
    """An ActivationCache of these activations, batch dimension included."""
    from transformer_lens import ActivationCache

    return ActivationCache(tensors, model)


def model_name(model: Any) -> str:
    """What to call the model in a message: its name, and its architecture where the configuration has one."""
    name = str(getattr(model.cfg, "model_name", None) or type(model).__name__)
    architecture = getattr(model.cfg, "architecture", None) or getattr(model.cfg, "original_architecture", None)
    return f"{name} ({architecture})" if architecture and architecture != name else name


def require_traceable(model: Any) -> None:
    """Refuse what is no TransformerLens decoder, and a model in training mode.

    Raises:
        UnsupportedModelError: neither TransformerBridge nor HookedTransformer, or no single list of blocks
            (encoder-decoder, encoder with a task head, …), or a release of TransformerLens that is not supported.
        ValueError: a bridge in training mode. (A HookedTransformer has no dropout and starts in training mode.)
    """
    require_supported_release()
    warn_of_unknown_release()
    if not is_bridge(model) and not is_hooked(model):
        raise UnsupportedModelError(
            f"expected a TransformerLens model (TransformerBridge or HookedTransformer), got {type(model).__name__}; "
            + (
                f"load it first: tlsv.load_model({shown_value(model)})."
                if isinstance(model, str)
                else "boot a Hugging Face model with TransformerBridge.boot_transformers(name, hf_model=model)."
            )
        )
    blocks = model._modules.get("blocks")
    if not isinstance(blocks, torch.nn.ModuleList) or len(blocks) == 0:
        raise UnsupportedModelError(
            f"{model_name(model)} has no list of blocks (`model.blocks`); only decoder-only models with one residual "
            "stream can be decomposed, not encoder-decoders: use a decoder-only model."
        )
    if is_bridge(model) and (model.training or getattr(model.original_model, "training", False)):
        raise ValueError(
            f"{model_name(model)} is in training mode, where dropout changes every run; call model.eval() first."
        )


def shows_a_copy(name: str, layer: int, sublayer: str) -> UnsupportedModelError:
    """The error for a sublayer whose output a release shows to hooks, but goes on with a copy of (Granite before 4)."""
    return UnsupportedModelError(
        f"{name}: this release of TransformerLens shows only a copy of what {sublayer} of layer {layer} adds, which no "
        "gradient reaches; use TransformerLens 4, or rule='frozen' (a ranking: total_effect_frozen)."
    )


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to, but through `.data`; tensors made in inference mode do not count it."""
    return 0 if tensor.is_inference() else tensor._version
