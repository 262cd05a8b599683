"""The model as a HookedTransformer, on releases of TransformerLens that have it (3.x).

A dense embedding and unembedding would take 1.1 GB each at full size, so HookedTransformer's own are made for one word
and replaced by the factored modules.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tl_subvalues.baevski18.adaptive import AdaptiveInput, AdaptiveSoftmax
from tl_subvalues.baevski18.bridge import refuse
from tl_subvalues.baevski18.modeling import Baevski18ForCausalLM
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.numerics.softmax import Columns


class FactoredEmbed(nn.Module):
    """In place of HookedTransformer's `embed`."""

    def __init__(self, words: AdaptiveInput) -> None:
        super().__init__()
        self.words = words

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed token ids."""
        embedded: Tensor = self.words(tokens)
        return embedded

    @property
    def W_E(self) -> Tensor:
        """The dense embedding (1.1 GB at full size), made anew at each reading."""
        return self.words.dense()


class AdaptiveUnembed(nn.Module):
    """In place of HookedTransformer's `unembed`; its output is log-probabilities."""

    def __init__(self, head: AdaptiveSoftmax, hook_point: type[nn.Module]) -> None:
        super().__init__()
        self.head = head
        self.hook_in, self.hook_out = hook_point(), hook_point()

    def forward(self, residual: Tensor) -> Tensor:
        """Log-probabilities of all words."""
        log_probs: Tensor = self.hook_out(self.head(self.hook_in(residual)))
        return log_probs

    def softmaxes(self) -> tuple[Columns, ...]:
        """The weights, as a readout takes them."""
        return self.head.softmaxes()

    @property
    def W_U(self) -> Tensor:
        """One column a word, dense, made anew at each reading; x @ W_U is no logit."""
        return self.head.dense().T

    @property
    def b_U(self) -> Tensor:
        """Zeros."""
        return self.head.dense_bias()


def boot_hooked(model: Baevski18ForCausalLM, tokenizer: Any, name: str) -> Any:
    """A HookedTransformer with the model's weights, that refuses the processing which would change it.

    Raises:
        UnsupportedModelError: on a TransformerLens without HookedTransformer.
    """
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.hook_points import HookPoint
    except ImportError as error:
        raise UnsupportedModelError(
            "this TransformerLens has no HookedTransformer (it left in release 4); leave hooked=False for a bridge."
        ) from error
    shape, weight = model.config.shape, model.embed_tokens.words[0].weight
    hooked = HookedTransformer(
        HookedTransformerConfig(
            n_layers=shape.n_layers,
            d_model=shape.d_model,
            n_ctx=shape.n_ctx,
            d_head=shape.d_head,
            n_heads=shape.n_heads,
            d_mlp=shape.d_mlp,
            d_vocab=1,
            act_fn="relu",
            eps=1e-5,
            normalization_type="LN",
            model_name=name,
            device=str(weight.device),
            dtype=weight.dtype,
            init_weights=False,
            default_prepend_bos=True,
        ),
        tokenizer,
    )
    hooked.cfg.d_vocab = hooked.cfg.d_vocab_out = shape.d_vocab
    hooked.embed = FactoredEmbed(model.embed_tokens)
    hooked.unembed = AdaptiveUnembed(model.lm_head, HookPoint)
    hooked.ln_final = nn.Identity()
    hooked.pos_embed.W_pos = nn.Parameter(model.embed_positions.weight, requires_grad=False)
    for theirs, ours in zip(hooked.blocks, model.layers, strict=True):
        _fill(theirs, ours, shape.n_heads)
    hooked.setup()
    hooked.eval()
    for method in (
        "process_weights_",
        "load_and_process_state_dict",
        "fold_layer_norm",
        "center_writing_weights",
        "center_unembed",
    ):
        object.__setattr__(hooked, method, refuse)
    return hooked


@torch.no_grad()
def _fill(theirs: Any, ours: Any, n_heads: int) -> None:
    """One block's weights in HookedTransformer's layout, as views."""

    def parameter(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.detach())

    attention = ours.self_attn
    for kind, module in zip("QKV", (attention.q_proj, attention.k_proj, attention.v_proj), strict=True):
        weight = module.weight.unflatten(0, (n_heads, -1)).transpose(1, 2)  # [head, d_model, d_head]
        setattr(theirs.attn, f"W_{kind}", parameter(weight))
        setattr(theirs.attn, f"b_{kind}", parameter(module.bias.unflatten(0, (n_heads, -1))))
    theirs.attn.W_O = parameter(attention.out_proj.weight.T.unflatten(0, (n_heads, -1)))
    theirs.attn.b_O = parameter(attention.out_proj.bias)
    theirs.mlp.W_in, theirs.mlp.b_in = parameter(ours.mlp.fc1.weight.T), parameter(ours.mlp.fc1.bias)
    theirs.mlp.W_out, theirs.mlp.b_out = parameter(ours.mlp.fc2.weight.T), parameter(ours.mlp.fc2.bias)
    for norm, own in ((theirs.ln1, ours.self_attn_layer_norm), (theirs.ln2, ours.final_layer_norm)):
        norm.w, norm.b = parameter(own.weight), parameter(own.bias)
