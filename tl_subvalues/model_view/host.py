"""TransformerLens's classes, releases and attribute names, each behind a function named after what it tells.

Releases differ in what they export: 2.x has no TransformerBridge, 4.x no HookedTransformer (and raises on the
attribute), 3.x has both, and some families changed the name of a norm between 3.9 and 4.3. Whatever depends on that
is here, but for how 2.x loads a folder (`folders`).
"""

import contextlib
import functools
import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.numerics.norms import Norm
from tl_subvalues.numerics.softmax import Columns

# The oldest and the newest release that the tests ran with.
TESTED = ((2, 18), (4, 3))

# What Hugging Face's feed-forward modules, and HookedTransformer's, call their activation function.
_ACTIVATIONS = ("act_fn", "act", "activation_fn", "gelu_impl", "activation")

# Modules that a bridge mounts between the final norm and the unembedding; with one of them the logits are not
# unembed(ln_final(x)), and nothing here decomposes them (ModernBERT's prediction head, OPT-350m's projection).
_READOUT_DETOURS = ("prediction_head", "project_out", "mlm_head", "classifier_ln", "hc_head", "sigma_map")


def release() -> tuple[int, ...] | None:
    """The installed TransformerLens, as (major, minor); None for a checkout, or a version of its own making."""
    try:
        version = importlib.metadata.version("transformer_lens")
        return tuple(int(part) for part in version.split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


@functools.cache
def warn_of_unknown_release() -> None:
    """Warn, once a process, where the installed TransformerLens is none that the tests ran with."""
    installed = release()
    if installed is not None and not TESTED[0] <= installed <= TESTED[1]:
        version = importlib.metadata.version("transformer_lens")
        oldest, newest = (".".join(map(str, bound)) for bound in TESTED)
        warnings.warn(
            f"TransformerLens {version} is outside the range that tl-subvalues was tested with ({oldest} to {newest}). "
            "Every trace still checks its sums and its readout, and refuses a model that does not add up.",
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


def boot_bridge(name: str, *, device: Any = None, dtype: torch.dtype = torch.float32, device_map: Any = None) -> Any:
    """A TransformerBridge of a model on the Hugging Face hub or in a local folder, in evaluation mode."""
    from transformer_lens.model_bridge import TransformerBridge

    placed = {"device": device} if device_map is None else {"device_map": device_map}
    return TransformerBridge.boot_transformers(name, dtype=dtype, **placed)


def load_named(name: str, *, device: Any = None, dtype: torch.dtype = torch.float32, device_map: Any = None) -> Any:
    """A model on the Hugging Face hub or in a local folder: a TransformerBridge; HookedTransformer on release 2.

    Raises:
        UnsupportedModelError: if release 2 does not know the name, or cannot convert a folder's model.
    """
    hooked = hooked_class()
    if bridge_class() is not None or hooked is None:
        return boot_bridge(name, device=device, dtype=dtype, device_map=device_map)
    if device_map is not None:
        raise ValueError("device_map needs TransformerLens 3 or newer; on TransformerLens 2 pass device.")
    with contextlib.redirect_stdout(sys.stderr):  # where it prints what it loaded
        if Path(name).is_dir():
            from tl_subvalues.model_view.folders import hooked_from_folder

            return hooked_from_folder(hooked, Path(name), device=device, dtype=dtype)
        try:
            return hooked.from_pretrained_no_processing(name, device=device, dtype=dtype)  # type: ignore[attr-defined]
        except ValueError as error:
            if "Valid official model names" not in str(error):
                raise
            raise UnsupportedModelError(
                f"TransformerLens 2 has a list of the models that it loads, and {name!r} is not on it; pass a local "
                "folder with a model of a layout that it knows, or use TransformerLens 3 or newer."
            ) from error


def activation_cache(tensors: dict[str, Tensor], model: Any) -> Any:
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
            (encoder-decoder, encoder with a task head, …).
        ValueError: a bridge in training mode. (A HookedTransformer has no dropout and starts in training mode.)
    """
    warn_of_unknown_release()
    if not is_bridge(model) and not is_hooked(model):
        raise UnsupportedModelError(
            f"expected a TransformerLens model (TransformerBridge or HookedTransformer), got {type(model).__name__}; "
            "boot a Hugging Face model with TransformerBridge.boot_transformers(name, hf_model=model)."
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


def require_direct_readout(model: Any) -> None:
    """Refuse a model whose logits are not unembed(ln_final(last residual)), by what is mounted on the way."""
    if "unembed" not in model._modules:
        raise UnsupportedModelError(
            f"{model_name(model)} has no unembedding (`model.unembed`), so its residual stream cannot be read in "
            "vocabulary space: use a causal language model."
        )
    detours = [name for name in _READOUT_DETOURS if name in model._modules]
    if detours:
        raise UnsupportedModelError(
            f"{model_name(model)} passes the final residual stream through {', '.join(detours)} before the "
            "unembedding, which is not covered: use a model that reads ln_final directly."
        )


def norm_of(module: Any, cfg: Any) -> Norm | None:
    """A norm module of either class as plain tensors; None where there is no norm (Identity, or no module)."""
    if module is None or isinstance(module, torch.nn.Identity):
        return None
    wrapped = getattr(module, "original_component", None)
    if wrapped is None:  # HookedTransformer's own, or a bridge's place for a norm that the model lacks
        return _hooked_norm(module) if hasattr(module, "eps") else None
    if isinstance(wrapped, torch.nn.Identity):
        return None
    if not hasattr(module, "uses_rms_norm"):
        raise UnsupportedModelError(
            f"{getattr(cfg, 'architecture', None) or 'the model'} norms by a {type(wrapped).__name__}, which "
            "TransformerLens mounts as no norm, so what it computes is not known: use a model with layer or RMS norms."
        )
    gain, bias = getattr(wrapped, "weight", None), getattr(wrapped, "bias", None)
    rms = bool(module.uses_rms_norm)
    # TransformerLens recomputes the norm with the configuration's eps unless it delegates to the wrapped module.
    delegates = getattr(module, "use_native_layernorm_autograd", False) or getattr(cfg, "layer_norm_folding", False)
    if gain is not None and _stores_gain_minus_one(module, wrapped, cfg):
        # Gemma adds the 1 in float32, whatever w's dtype; Nemotron, and TransformerLens's own code, in w's.
        gain = 1.0 + (gain.to(torch.promote_types(gain.dtype, torch.float32)) if rms and delegates else gain)
    own_eps = getattr(wrapped, "eps", getattr(wrapped, "variance_epsilon", None)) if delegates else None
    eps = float(own_eps if own_eps is not None else getattr(cfg, "eps", 1e-5))
    return Norm("rms" if rms else "layer", _detached(gain), None if rms else _detached(bias), eps)


def _hooked_norm(module: Any) -> Norm:
    kind = "rms" if "RMS" in type(module).__name__ else "layer"
    gain, bias = getattr(module, "w", None), getattr(module, "b", None)
    return Norm("rms" if kind == "rms" else "layer", _detached(gain), _detached(bias), float(module.eps))


def _stores_gain_minus_one(module: Any, wrapped: Any, cfg: Any) -> bool:
    if hasattr(module, "uses_weight_offset"):  # 4.x
        return bool(module.uses_weight_offset)
    # 3.x: the Gemma family says so in its configuration, these only in their names.
    if type(wrapped).__name__ in ("NemotronLayerNorm1P", "Qwen3NextRMSNorm", "Qwen3_5RMSNorm"):
        return True
    return bool(module.uses_rms_norm and getattr(cfg, "rmsnorm_uses_offset", False))


def _detached(tensor: Any) -> Tensor | None:
    return tensor.detach() if isinstance(tensor, Tensor) else None


def post_norm_name(model: Any, block: Any, sublayer: str) -> str | None:
    """Name of the norm between a sublayer and the residual stream within its block, or None.

    `ln1_post`/`ln2_post`, but `ln1`/`ln2` for OLMo 2, OLMo 3 and EXAONE 4 on 3.x.
    """
    default = {"attn": "ln1", "mlp": "ln2"}[sublayer]
    if is_hooked(model):
        if getattr(model.cfg, "use_normalization_before_and_after", False):
            return f"{default}_post"
        architecture = getattr(model.cfg, "original_architecture", None)
        return default if architecture in ("Olmo2ForCausalLM", "Olmo3ForCausalLM") else None
    alias = getattr(block, "hook_aliases", {}).get(f"hook_{sublayer}_out")
    first = alias.split(".")[0] if isinstance(alias, str) else ""
    return first if first.startswith("ln") else None


def residual_multiplier(block: Any) -> float:
    """Factor on a sublayer's output before it is added (Granite); 1 elsewhere."""
    return float(getattr(block, "residual_contribution_scale", 1.0))


def activation_of(mlp: Any) -> Callable[[Tensor], Tensor] | None:
    """The function from all pre-activations of an FFN to what its W_out (gated: its up projection) is weighted with.

    None where the module does not show it.
    """
    wrapped = getattr(mlp, "original_component", None)
    owner = mlp if wrapped is None else wrapped
    for name in _ACTIVATIONS:
        function = getattr(owner, name, None)
        if callable(function):
            if wrapped is None and getattr(mlp.cfg, "act_fn", "").endswith("_ln"):  # solu_ln: a norm over the neurons
                return _where_it_is(mlp, function, mlp.ln)
            return _where_it_is(mlp, function)
    # Written out in the module's forward (LFM 2): by the configuration's name, SiLU without one; checked before use.
    name = getattr(getattr(owner, "config", None), "hidden_act", None) or "silu"
    return _named_activation(name) if wrapped is not None else None


def _named_activation(name: str) -> Callable[[Tensor], Tensor] | None:
    from transformers.activations import ACT2FN

    return ACT2FN[name] if name in ACT2FN else None  # noqa: SIM401 (its get() gives the class)


def _where_it_is(mlp: Any, *functions: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Functions, one after another, that may have parameters of their own (Apertus's has): on their module's device."""
    parameter = next(mlp.parameters(), None)

    def activation(pre: Tensor) -> Tensor:
        x = pre if parameter is None else pre.to(parameter.device)
        for function in functions:
            x = function(x)
        return x.to(pre.device)

    return activation


def unwrapped(module: Any) -> Any:
    """The model's own module behind a bridge's component."""
    while isinstance(inner := getattr(module, "original_component", None), torch.nn.Module):
        module = inner
    return module


def embedding_hooks(model: Any) -> list[str]:
    """Names of the activations that enter the residual stream before layer 0, as far as the model caches them."""
    return [name for name in ("hook_embed", "hook_pos_embed") if name in model.hook_dict]


def logit_transform(model: Any) -> tuple[float, float | None]:
    """What happens to unembed's output: (factor, soft cap). The model's logits are cap * tanh(factor * x / cap).

    Cohere's factor is read from the wrapped model, which compatibility mode sets to 1 when it folds the factor
    into the unembedding; the configuration keeps the old one.
    """
    cap = float(getattr(model.cfg, "output_logits_soft_cap", None) or 0.0)
    factor = 1.0
    if is_bridge(model):
        wrapped = model.original_model
        if isinstance(getattr(wrapped, "logit_scale", None), (int, float)):
            factor = float(wrapped.logit_scale)
        elif type(wrapped).__name__.startswith("Granite"):
            factor = 1.0 / float(getattr(wrapped.config, "logits_scaling", 1.0))
    return factor, cap if cap > 0.0 else None


def has_own_softmaxes(model: Any) -> bool:
    """Whether the unembedding names its softmaxes, whose log-probabilities it returns."""
    unembed = model.unembed
    return hasattr(getattr(unembed, "original_component", None) or unembed, "softmaxes")


def softmaxes(model: Any) -> tuple[Columns, ...]:
    """The weights of the softmaxes that words' log-probabilities are made of, as `ReadoutPieces` holds them.

    One where unembed(y) is y @ W_U + b_U with weights that can be read; several where the unembedding says so itself,
    by a method `softmaxes` (an adaptive softmax, whose output is log-probabilities); none where it can only be called.
    """
    unembed = model.unembed
    wrapped = getattr(unembed, "original_component", None)
    if has_own_softmaxes(model):
        own: tuple[Columns, ...] = (unembed if wrapped is None else wrapped).softmaxes()
        return own
    linear = type(unembed).__name__ == "Unembed" if wrapped is None else isinstance(wrapped, torch.nn.Linear)
    return (Columns((model.W_U.detach(),), model.b_U.detach()),) if linear else ()


def is_parallel_block(model: Any, block: Any) -> bool:
    """Whether attention and FFN are said to read the same input.

    That a bridge has no hook between them is not enough: OLMo Hybrid on 3.x has none either.
    """
    if is_hooked(model):
        return bool(getattr(model.cfg, "parallel_attn_mlp", False))
    return any(cls.__name__ == "ParallelBlockBridge" for cls in type(block).__mro__)


def is_latent_attention(attn: Any) -> bool:
    """Whether an attention sublayer is a bridge's multi-head latent attention."""
    return any(cls.__name__ == "MLAAttentionBridge" for cls in type(attn).__mro__)
