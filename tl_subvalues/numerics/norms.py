"""Layer norms as plain tensors: what is linear in them once their scale is frozen.

A norm is x -> gain * C(x) / scale(x) + bias, with C the centring of a layer norm (the identity for an RMS
norm). With the scale held at a value of one run it is affine, which is what lets parts of the residual
stream be read one by one (arXiv 2312.12141, section 3; docs of `apply_ln_to_stack` in TransformerLens).
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

NormKind = Literal["layer", "rms"]


@dataclass(frozen=True)
class Norm:
    """One norm's parameters. `gain` is the factor really applied (1 + w where a family stores w)."""

    kind: NormKind
    gain: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    eps: float

    def centre(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """x minus its mean for a layer norm, x itself for an RMS norm."""
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def scale(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest 1"]:
        """What the norm divides x by: the root of the mean square of the (centred) x, eps included."""
        return (self.centre(x).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def linear(self, vectors: Float[Tensor, "*rest d_model"], scale: Tensor) -> Float[Tensor, "*rest d_model"]:
        """The linear part of the norm with its scale frozen: gain * C(v) / scale. `scale` broadcasts to [*rest, 1]."""
        return self._times_gain(self.centre(vectors) / scale)

    def transposed(self, covectors: Float[Tensor, "*rest d_model"], scale: Tensor) -> Float[Tensor, "*rest d_model"]:
        """The transpose of `linear`: <covector, linear(v)> = <transposed(covector), v>."""
        return self.centre(self._times_gain(covectors)) / scale

    def affine(self, x: Float[Tensor, "*rest d_model"], scale: Tensor) -> Float[Tensor, "*rest d_model"]:
        """The norm with its scale frozen, bias included."""
        y = self.linear(x, scale)
        return y if self.bias is None else y + self.bias.to(y)

    def __call__(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """The norm as the model applies it, its scale taken from x."""
        return self.affine(x, self.scale(x))

    def _times_gain(self, x: Tensor) -> Tensor:
        return x if self.gain is None else x * self.gain.to(x)


@dataclass(frozen=True)
class Passage:
    """What stands between a sublayer's sum and the residual stream: a post-norm, a multiplier, or nothing.

    Gemma 2, Gemma 3, GLM 4, OLMo 2 and EXAONE 4 norm a sublayer's output before adding it; Granite multiplies it.
    With the post-norm's scale frozen at the run's value the passage is affine: each subvalue goes through
    `carry`, and what is constant (the sublayer's bias, the post-norm's bias) through `carry_bias`, so that
    the parts add up to what enters the residual stream.
    """

    norm: Norm | None = None
    multiplier: float = 1.0

    def carry(self, vectors: Float[Tensor, "*rest d_model"], scale: Tensor | None) -> Float[Tensor, "*rest d_model"]:
        """The linear part, for subvalues. `scale` is the post-norm's, broadcasting to [*rest, 1]; None without one."""
        if self.norm is not None and scale is not None:
            vectors = self.norm.linear(vectors, scale)
        return vectors if self.multiplier == 1.0 else vectors * self.multiplier

    def stretch(self, scale: Tensor | None) -> float:
        """By how much `carry` lengthens a vector at most."""
        stretch = abs(self.multiplier)
        if self.norm is not None and scale is not None:
            gain = 1.0 if self.norm.gain is None else float(self.norm.gain.abs().max())
            stretch *= gain / float(scale.min())
        return stretch

    @property
    def adds_nothing(self) -> bool:
        """Whether nothing comes of no bias."""
        return self.norm is None or self.norm.bias is None

    def carry_bias(self, bias: Float[Tensor, "*rest d_model"], scale: Tensor | None) -> Float[Tensor, "*rest d_model"]:
        """The bias part of what enters the residual stream, from the sublayer's own bias."""
        carried = self.carry(bias, scale)
        if self.norm is None or self.norm.bias is None:
            return carried
        return carried + self.norm.bias.to(carried) * self.multiplier

    def transposed(
        self, covectors: Float[Tensor, "*rest d_model"], scale: Tensor | None
    ) -> Float[Tensor, "*rest d_model"]:
        """The transpose of `carry`: <covector, carry(v)> = <transposed(covector), v>."""
        if self.norm is not None and scale is not None:
            covectors = self.norm.transposed(covectors, scale)
        return covectors if self.multiplier == 1.0 else covectors * self.multiplier
