"""One block of a model: what it has, and its weights on request, never a stack of layers."""

from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import MIXERS, Component, Unit
from tl_subvalues.model_view.experts import MixtureOfExperts
from tl_subvalues.model_view.modules import (
    activation_of,
    is_latent_attention,
    is_parallel_block,
    norm_of,
    post_norm_name,
    residual_multiplier,
    unwrapped,
)
from tl_subvalues.model_view.releases import is_hooked, model_name
from tl_subvalues.model_view.remembered import Remembered
from tl_subvalues.model_view.weights import FFN, Attention, by_query_head
from tl_subvalues.numerics.norms import Norm, Passage


class Layer:
    """One block: what it has, and its weights on request."""

    def __init__(self, model: Any, layer: int, hook_names: frozenset[str]) -> None:
        self.layer = layer
        self._hook_names = hook_names
        self._model = model
        self._block = model.blocks[layer]
        self._modules: dict[str, Any] = self._block._modules
        self.has_attn = "attn" in self._modules
        self.has_ffn = "mlp" in self._modules
        self._sizes: dict[tuple[Unit, int | None], dict[str, int]] = {}
        self._remembered = Remembered(self._block)

    @cached_property
    def mixers(self) -> tuple[str, ...]:
        """Sublayers in attention's place or beside it: convolutions, state spaces, linear attention."""
        return tuple(name for name in MIXERS if name in self._modules)

    @cached_property
    def sublayers(self) -> tuple[str, ...]:
        """All sublayers, in order of computation."""
        return (*["attn"] * self.has_attn, *self.mixers, *["mlp"] * self.has_ffn)

    def unknown(self) -> list[str]:
        """Modules of the block that are no sublayer and no norm of those that are known."""
        known = ("attn", "mlp", "ln", "norm", "hook", "_original_component")
        return [name for name in self._modules if not name.startswith(known) and name not in MIXERS]

    def output_hook(self, sublayer: str) -> str:
        """Full name of the hook that holds what a sublayer adds to the residual stream."""
        return f"blocks.{self.layer}." + (f"{sublayer}.hook_out" if sublayer in MIXERS else f"hook_{sublayer}_out")

    @cached_property
    def parallel(self) -> bool:
        """Whether attention and FFN read the same input: such a block has no residual stream between them."""
        between = f"blocks.{self.layer}.hook_resid_mid" in self._hook_names
        return not between and is_parallel_block(self._model, self._block)

    def reads_mid(self, sublayer: str) -> bool:
        """Whether a sublayer reads what attention, or a mixer, of its own block has written: an FFN after it."""
        return sublayer == "mlp" and not self.parallel

    @cached_property
    def latent(self) -> bool:
        """Whether attention is latent (DeepSeek): values cached head first, and no W_V, for a norm is on their way."""
        return self.has_attn and is_latent_attention(self._block.attn)

    def values_by_source(self, values: Tensor, n_keys: int) -> Float[Tensor, "batch key head d_head"]:
        """What `attn.hook_v` shows, as the values of every query head at every source position.

        Raises:
            UnsupportedModelError: if they are in another layout, or at other positions than the pattern's.
        """
        n_heads, d_head, _ = self.attention().W_O.shape
        ordered = values.transpose(1, 2) if self.latent and values.ndim == 4 else values
        if ordered.ndim != 4 or ordered.shape[1] != n_keys or ordered.shape[-1] != d_head or n_heads % ordered.shape[2]:
            raise UnsupportedModelError(
                f"{model_name(self._model)}: layer {self.layer} has values of shape {tuple(values.shape)} for "
                f"{n_heads} heads of {d_head} that read {n_keys} positions, so they cannot be told apart by source "
                "position (a layout of its own, or a run with past keys and values); ask for whole heads, by='head'."
            )
        return by_query_head(ordered, n_heads)

    def attention(self) -> Attention:
        """The attention sublayer.

        Raises:
            UnsupportedModelError: if the block has none, or none with readable weights.
        """
        if not self.has_attn:
            raise self._refusal("has no attention sublayer that can be decomposed")
        return self._remembered("attention", self._read_attention)

    def _read_attention(self) -> Attention:
        attn = self._block.attn
        self._require_numbers("attention", attn)
        try:
            W_O, b_O = attn.W_O, attn.b_O
        except (AttributeError, NotImplementedError) as error:
            raise self._refusal(f"hides its attention's output weights ({error})") from error
        W_V, b_V = _value_weights(attn)
        return Attention(
            W_O=W_O.detach(),
            b_O=_detach(b_O),
            W_V=_detach(W_V),
            b_V=_detach(b_V),
            norm=self._pre_norm("attn"),
            passage=self.passage("attn"),
        )

    def ffn(self) -> FFN:
        """The feed-forward sublayer, where it is one and no mixture of experts.

        Raises:
            UnsupportedModelError: if the block has none, or a mixture of experts.
        """
        if not self.has_ffn:
            raise self._refusal("has no feed-forward sublayer")
        return self._remembered("ffn", self._read_ffn)

    def _read_ffn(self) -> FFN:
        mlp = self._block.mlp
        self._require_numbers("feed-forward sublayer", mlp)
        W_out = _read(mlp, "W_out")
        if not _is_matrix(W_out):
            raise self._refusal("has a mixture of experts for a feed-forward sublayer, with no one W_out")
        W_gate, b_in = _read(mlp, "W_gate"), _read(mlp, "b_in")
        adds_after_product = W_gate is not None and is_hooked(self._model)
        return FFN(
            W_in=_detach(_read(mlp, "W_in")),
            b_in=None if adds_after_product else _detach(b_in),
            W_gate=_detach(W_gate),
            b_gate=_detach(_read(mlp, "b_gate")),
            b_post=_detach(b_in) if adds_after_product else None,
            W_out=W_out.detach(),
            b_out=_detach(_read(mlp, "b_out")),
            norm=self._pre_norm("mlp"),
            passage=self.passage("mlp"),
            activation=activation_of(mlp),
        )

    def mixture(self) -> MixtureOfExperts | None:
        """The mixture of experts that is this block's feed-forward sublayer; None where that is dense.

        Raises:
            UnsupportedModelError: if the block has no feed-forward sublayer, or one without neurons that can be read.
        """
        return self._mixture

    @cached_property
    def _mixture(self) -> MixtureOfExperts | None:
        if not self.has_ffn:
            raise self._refusal("has no feed-forward sublayer")
        self._require_numbers("feed-forward sublayer", self._block.mlp)
        if _is_matrix(_read(self._block.mlp, "W_out")):
            return None
        try:
            return MixtureOfExperts(unwrapped(self._block.mlp), self._pre_norm("mlp"), self.passage("mlp"))
        except NotImplementedError as error:
            raise self._refusal(f"has a feed-forward sublayer whose neurons cannot be read: {error}") from error

    def require(self, component: Component) -> None:
        """Raise unless the block has this head, index, neuron or sublayer.

        Raises:
            ValueError: saying what it has instead.
            UnsupportedModelError: if its sublayer has no such parts.
        """
        key = component.unit, component.expert
        if key not in self._sizes:
            self._sizes[key] = self._sizes_of(component)
        for axis, size in self._sizes[key].items():
            value = getattr(component, axis)
            if value is not None and not value < size:
                raise ValueError(f"{axis} {value} is not below {size}")
        if component.unit == "sublayer" and component.sublayer not in self.sublayers:
            raise ValueError(f"layer {self.layer} has no {component.sublayer} sublayer")

    def _sizes_of(self, component: Component) -> dict[str, int]:
        """How many heads, indices or neurons there are beside a component."""
        if component.unit == "sublayer":
            return {}
        if component.unit != "ffn_neuron":
            attention = self.attention()
            return {"head": attention.n_heads, "dim": attention.d_head}
        mixture, expert = self.mixture(), component.expert
        if mixture is None:
            if expert is not None:
                raise ValueError(f"layer {self.layer} has a dense FFN, whose neurons are called as L24N1005")
            return {"neuron": len(self.ffn().W_out)}
        if expert is None:
            raise ValueError(f"layer {self.layer} has a mixture of experts, whose neurons are called as L3E5N10")
        if expert >= len(mixture):
            raise ValueError(f"there is no expert {expert}: expert {expert} is not below {len(mixture)}")
        return {"neuron": len(mixture.expert(expert).W_out)}

    def neuron_hook(self) -> str | None:
        """Full name of the hook that holds the coefficients or, in a mixture, what they are made of."""
        try:
            name = "hook_post" if self.mixture() is None else "hook_in"
        except UnsupportedModelError:
            return None
        return f"blocks.{self.layer}.mlp.{name}"

    def hook(self, name: str) -> str:
        """Full name of one of the block's hooks, such as `mlp.hook_post`.

        Raises:
            UnsupportedModelError: if the block has no such hook.
        """
        full = f"blocks.{self.layer}.{name}"
        if full not in self._hook_names:
            raise self._refusal(f"has no {name} to ablate at")
        return full

    def passage(self, sublayer: str) -> Passage:
        """What stands between a sublayer's sum and the residual stream."""
        name = self.post_norm_name(sublayer)
        norm = norm_of(self._modules[name], self._model.cfg) if name else None
        return Passage(norm, residual_multiplier(self._block))

    def post_norm_name(self, sublayer: str) -> str | None:
        """Name of the sublayer's post-norm in the block (its `hook_scale` is in the cache), or None."""
        return post_norm_name(self._model, self._block, sublayer)

    def post_scale_hook(self, sublayer: str) -> str | None:
        """Full name of the hook that holds the post-norm's scale, or None."""
        name = self.post_norm_name(sublayer)
        return f"blocks.{self.layer}.{name}.hook_scale" if name else None

    def _pre_norm(self, sublayer: str) -> Norm | None:
        """The norm that a sublayer reads through. A parallel block's FFN shares ln1 unless it has its own ln2."""
        post_norms = {self.post_norm_name("attn"), self.post_norm_name("mlp")}
        names = ["ln1"] if sublayer == "attn" else ["ln2", "ln1"] if self.parallel else ["ln2"]
        for name in names:
            if name in self._modules and name not in post_norms:
                return norm_of(self._modules[name], self._model.cfg)
        return None

    def _require_numbers(self, sublayer: str, module: Any) -> None:
        """Refuse weights that are stored as something else than themselves: quantised, or held elsewhere."""
        for weight in module.parameters():
            if weight.is_meta:
                raise self._refusal(
                    f"has its {sublayer}'s weights offloaded, so that they cannot be read between runs: load the model "
                    "with a device_map that keeps them on devices"
                )
            if not weight.is_floating_point() or weight.element_size() == 1:
                raise self._refusal(
                    f"stores its {sublayer}'s weights quantised ({weight.dtype}): load the model without quantisation, "
                    "or dequantise it (hf_model.dequantize()) before TransformerLens boots it"
                )

    def _refusal(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{model_name(self._model)}: layer {self.layer} {reason}; the layers that have what you ask for can "
            "still be decomposed one by one, and whole sublayers by trace.layers()."
        )


def _read(module: Any, name: str) -> Any:
    """An attribute that a class may lack or refuse: None then."""
    try:
        return getattr(module, name)
    except (AttributeError, NotImplementedError):
        return None


def _is_matrix(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.ndim == 2


def _value_weights(attn: Any) -> tuple[Any, Any]:
    """W_V and b_V per key/value head; HookedTransformer's own attributes are copies expanded to query heads."""
    if isinstance(_read(attn, "_W_V"), Tensor):
        return attn._W_V, attn._b_V
    return _read(attn, "W_V"), _read(attn, "b_V")


def _detach(tensor: Any) -> Tensor | None:
    return tensor.detach() if isinstance(tensor, Tensor) else None
