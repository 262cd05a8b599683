"""The model as a TransformerBridge: which module is what, and which processing is refused.

Registered in the entry-point group `transformer_lens.architectures`, and by `boot_bridge` itself where the package's
metadata is not installed. Of this package, only this file, `hooked.py` and the model view know TransformerLens.
"""

from typing import Any, NoReturn

from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    PosEmbedBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from tl_subvalues.baevski18.modeling import ARCHITECTURE, Baevski18ForCausalLM
from tl_subvalues.errors import UnsupportedModelError

REFUSAL = (
    "Baevski & Auli's model has no final norm and an adaptive softmax, so folding norms, centring writing weights and "
    "centring the unembedding (compatibility mode does all three) would change its output; use it as it was loaded."
)


class FactoredEmbedding(EmbeddingBridge):
    """The embedding; its W_E is made at each reading, once the bridge is whole.

    While it is made, TransformerLens reads every attribute in search of hooks, ten times over: 1.1 GB each.
    """

    whole = False

    @property
    def W_E(self) -> Tensor:
        """The dense embedding."""
        component: Any = self.original_component
        if not self.whole:
            raise AttributeError("W_E is made for a model that baevski18.load returned")
        dense: Tensor = component.dense()
        return dense


class AdaptiveUnembedding(UnembeddingBridge):
    """The adaptive softmax; its W_U is made at each reading, once the bridge is whole. x @ W_U is no logit."""

    whole = False

    @property
    def W_U(self) -> Tensor:
        """One column a word."""
        component: Any = self.original_component
        if not self.whole:
            raise AttributeError("W_U is made for a model that baevski18.load returned")
        dense: Tensor = component.dense()
        return dense.T

    @property
    def b_U(self) -> Tensor:
        """Zeros."""
        component: Any = self.original_component
        zeros: Tensor = component.dense_bias()
        return zeros


class HookedAttention(AttentionBridge):
    """Attention whose scores and pattern are live: what a hook returns is what the values are weighted with."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The output and the pattern."""
        attention: Any = self.original_component
        hidden_states = self.hook_in(hidden_states)
        output, pattern = attention(
            hidden_states, on_scores=self.hook_attn_scores, on_pattern=self.hook_pattern, **kwargs
        )
        return self.hook_out(output), pattern


class Baevski18ArchitectureAdapter(ArchitectureAdapter):
    """Names of `Baevski18ForCausalLM`'s modules; there is no final norm to name."""

    supports_compatibility_mode = False
    supports_fold_ln = False
    supports_center_writing_weights = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.normalization_type = "LN"
        self.cfg.positional_embedding_type = "standard"
        self.cfg.final_rms = False
        self.cfg.gated_mlp = False
        self.cfg.attn_only = False
        self.cfg.uses_rms_norm = False
        self.cfg.default_prepend_bos = True
        self.weight_processing_conversions = {}
        norm: dict[str, Any] = {"config": self.cfg, "use_native_layernorm_autograd": True}
        attention: dict[str, GeneralizedComponent] = {
            "q": LinearBridge(name="q_proj"),
            "k": LinearBridge(name="k_proj"),
            "v": LinearBridge(name="v_proj"),
            "o": LinearBridge(name="out_proj"),
        }
        feed_forward: dict[str, GeneralizedComponent] = {
            "in": LinearBridge(name="fc1"),
            "out": LinearBridge(name="fc2"),
        }
        block: dict[str, GeneralizedComponent] = {
            "ln1": NormalizationBridge(name="self_attn_layer_norm", **norm),
            "attn": HookedAttention(name="self_attn", config=self.cfg, submodules=attention),
            "ln2": NormalizationBridge(name="final_layer_norm", **norm),
            "mlp": MLPBridge(name="mlp", config=self.cfg, submodules=feed_forward),
        }
        self.component_mapping = {
            "embed": FactoredEmbedding(name="embed_tokens"),
            "pos_embed": PosEmbedBridge(name="embed_positions"),
            "blocks": BlockBridge(name="layers", config=self.cfg, submodules=block),
            "unembed": AdaptiveUnembedding(name="lm_head"),
        }


def register() -> None:
    """Make the architecture known, unless the package's entry point already has."""
    ArchitectureAdapterFactory.discover_entry_points()  # first, for it warns of a name that is taken
    if ARCHITECTURE not in ArchitectureAdapterFactory._adapters:
        ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, Baevski18ArchitectureAdapter)


def boot_bridge(model: Baevski18ForCausalLM, tokenizer: Any, name: str) -> Any:
    """A TransformerBridge of the model, in evaluation mode, that refuses the processing which would change it."""
    register()
    parameter = next(model.parameters())
    bridge = build_bridge_from_module(
        model.eval(),
        ARCHITECTURE,
        hf_config=model.config,
        tokenizer=tokenizer,
        dtype=parameter.dtype,
        device=parameter.device,
        model_name=name,
    )
    bridge.eval()
    bridge.embed.whole = bridge.unembed.whole = True
    for method in ("enable_compatibility_mode", "process_weights"):
        object.__setattr__(bridge, method, refuse)
    return bridge


def refuse(*args: Any, **kwargs: Any) -> NoReturn:
    """In place of every method that processes weights.

    Raises:
        UnsupportedModelError: always.
    """
    raise UnsupportedModelError(REFUSAL)
