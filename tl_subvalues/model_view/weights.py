"""Weights of one layer's sublayers and of the readout by the method's names, each a view of the model's own tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import einops
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.numerics.blocks import affine
from tl_subvalues.numerics.norms import Norm, Passage
from tl_subvalues.numerics.softmax import Columns
from tl_subvalues.numerics.weight_rows import WeightRows


@dataclass(frozen=True)
class Attention:
    """An attention sublayer. `norm` is the one it reads through (None: the raw residual stream).

    `W_V` is None where it is hidden, or where no linear map leads from what is read to the values: in latent attention
    (DeepSeek) a norm with a scale of its own stands between, v = W_b norm(W_a x).
    """

    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Float[Tensor, " d_model"] | None
    W_V: Float[Tensor, "kv_head d_model d_head"] | None
    b_V: Float[Tensor, "kv_head d_head"] | None
    norm: Norm | None
    passage: Passage

    @cached_property
    def rows(self) -> WeightRows:
        """The rows of W_O, head by head."""
        return WeightRows(self.W_O.flatten(0, 1))

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return self.W_O.shape[0]

    @property
    def d_head(self) -> int:
        """Indices of a head."""
        return self.W_O.shape[1]

    def kv_head(self, head: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Which of W_V's heads serves each query head: with grouped queries, several share one."""
        assert self.W_V is not None
        return head // (self.n_heads // len(self.W_V))

    def values_of(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch head d_head"]:
        """The values of every query head where the residual stream is x."""
        assert self.W_V is not None
        x = x if self.norm is None else self.norm(x)
        values = einops.einsum(x, self.W_V.to(x), "batch d_model, head d_model d_head -> batch head d_head")
        if self.b_V is not None:
            values = values + self.b_V.to(x)
        return by_query_head(values, self.n_heads)

    def read_back(
        self, covectors: Float[Tensor, "k key head d_head"], x: Float[Tensor, "key d_model"]
    ) -> tuple[Float[Tensor, "k key d_model"], Float[Tensor, " k"]]:
        """Covectors of x, the norm's scale held at x, from those of the values; and what bias terms add to the values.

        With grouped queries, the covectors of heads that share values are added up.
        """
        assert self.W_V is not None
        shared = einops.reduce(covectors, "k key (kv group) dim -> k key kv dim", "sum", kv=len(self.W_V))
        read = einops.einsum(shared, self.W_V.to(x), "k key kv dim, kv d dim -> k key d")
        bias = covectors.new_zeros(len(covectors))
        if self.b_V is not None:
            bias = bias + (shared * self.b_V.to(x)).sum((1, 2, 3))
        if self.norm is None:
            return read, bias
        if self.norm.bias is not None:
            bias = bias + (read @ self.norm.bias.to(x)).sum(1)
        return self.norm.transposed(read, self.norm.scale(x)), bias


@dataclass(frozen=True)
class FFN:
    """A feed-forward sublayer, plain (`W_gate` None) or gated. A neuron's subvalue is coefficient * W_out row.

    Plain: coefficient = act(x W_in + b_in). Gated: act(x W_gate + b_gate) * (x W_in + b_in) + b_post, where b_post
    is what HookedTransformer's gated FFN adds after the product (None elsewhere). x is read through `norm`.
    """

    W_in: Float[Tensor, "d_model neuron"] | None
    b_in: Float[Tensor, " neuron"] | None
    W_gate: Float[Tensor, "d_model neuron"] | None
    b_gate: Float[Tensor, " neuron"] | None
    b_post: Float[Tensor, " neuron"] | None
    W_out: Float[Tensor, "neuron d_model"]
    b_out: Float[Tensor, " d_model"] | None
    norm: Norm | None
    passage: Passage
    activation: Callable[[Tensor], Tensor] | None  # act, over all neurons at once; None where it cannot be read

    @cached_property
    def rows(self) -> WeightRows:
        """The rows of W_out."""
        return WeightRows(self.W_out)

    @property
    def readable(self) -> bool:
        """Whether what its neurons read with, and do with it, is there to be read."""
        return self.W_in is not None and self.activation is not None

    def projections(
        self, x: Float[Tensor, "batch d_model"]
    ) -> tuple[Float[Tensor, "batch neuron"] | None, Float[Tensor, "batch neuron"]]:
        """(norm(x) W_gate + b_gate, norm(x) W_in + b_in) where the residual stream is x; no gate in a plain FFN."""
        assert self.W_in is not None
        x = x if self.norm is None else self.norm(x)
        up = affine(x, self.W_in, self.b_in)
        return None if self.W_gate is None else affine(x, self.W_gate, self.b_gate), up

    def coefficients(
        self, gate: Float[Tensor, "batch neuron"] | None, up: Float[Tensor, "batch neuron"]
    ) -> Float[Tensor, "batch neuron"]:
        """Coefficients from the two projections, all neurons taken together."""
        assert self.activation is not None
        if gate is None:
            return self.activation(up).to(up)
        m = self.activation(gate).to(up) * up
        return m if self.b_post is None else m + self.b_post.to(up)


@dataclass(frozen=True)
class ReadoutPieces:
    """What stands between the final residual stream and the logits: cap * tanh(factor * unembed(norm(x)) / cap).

    `softmaxes` holds the unembedding's weights: one softmax's over all words; or an adaptive softmax's, first its
    head's (the first words in order, then one class for each band), then each band's, whose words follow in order; or
    none, where the unembedding can only be called.
    """

    norm: Norm | None
    softmaxes: tuple[Columns, ...]
    normalised: bool  # whether the model's logits are log-probabilities, as an adaptive softmax's are
    unembed: Callable[[Tensor], Tensor]
    factor: float
    soft_cap: float | None
    d_vocab: int


def by_query_head(values: Float[Tensor, "*rest kv_head d_head"], n_heads: int) -> Float[Tensor, "*rest head d_head"]:
    """Values of every query head: those of a group of query heads that share theirs, once for each."""
    group = n_heads // values.shape[-2]
    return values if group == 1 else values.repeat_interleave(group, dim=-2)
