"""What the modules of a TransformerLens model tell: norms, activation functions, what stands before the logits.

Each attribute that depends on a class or a release is read here, behind a function named after what it tells; some
families changed the name of a norm between 3.9 and 4.3.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view.releases import is_bridge, is_hooked, model_name
from tl_subvalues.numerics.norms import Norm
from tl_subvalues.numerics.softmax import Columns

# What Hugging Face's feed-forward modules, and HookedTransformer's, call their activation function.
_ACTIVATIONS = ("act_fn", "act", "activation_fn", "gelu_impl", "activation")

# Modules that a bridge mounts between the final norm and the unembedding; with one of them the logits are not
# unembed(ln_final(x)), and nothing here decomposes them (ModernBERT's prediction head, OPT-350m's projection).
_READOUT_DETOURS = ("prediction_head", "project_out", "mlm_head", "classifier_ln", "hc_head", "sigma_map")


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
                return _on_module_device(mlp, function, mlp.ln)
            return _on_module_device(mlp, function)
    # Written out in the module's forward (LFM 2): by the configuration's name, SiLU without one; checked before use.
    name = getattr(getattr(owner, "config", None), "hidden_act", None) or "silu"
    return _named_activation(name) if wrapped is not None else None


def _named_activation(name: str) -> Callable[[Tensor], Tensor] | None:
    from transformers.activations import ACT2FN

    return ACT2FN[name] if name in ACT2FN else None  # noqa: SIM401 (its get() gives the class)


def _on_module_device(mlp: Any, *functions: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Functions one after another, called on the device of their module: Apertus's has parameters of its own."""
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


def softmaxes_of(model: Any) -> tuple[Columns, ...]:
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


def configuration_below(model: Any) -> dict[str, Any] | None:
    """Hugging Face's configuration of the model that a bridge is around; None where there is none."""
    config: Any = getattr(getattr(model, "original_model", None), "config", None)
    return config.to_dict() if hasattr(config, "to_dict") else None
