"""FFN neurons at all positions as readers: their projections, and how coefficients are made of these."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.everywhere import NeuronsEverywhere
from tl_subvalues.decomposition.run import Run
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import FFN, MixtureOfExperts
from tl_subvalues.numerics.blocks import affine
from tl_subvalues.numerics.norms import Norm


@dataclass(frozen=True)
class Projection:
    """weight · norm(x) W + b at every position: what neurons read of the residual stream."""

    values: Float[Tensor, "pos neuron"]
    W: Tensor  # [d_model, neuron], the model's own
    b: Tensor | None
    norm: Norm | None
    weight: Float[Tensor, " pos"] | None  # a routing weight on what an expert reads (Llama 4)

    def read_back(
        self, covectors: Float[Tensor, "k pos neuron"], x: Float[Tensor, "pos d_model"]
    ) -> tuple[Float[Tensor, "k pos d_model"], Float[Tensor, " k"]]:
        """Covectors of x, the norm's scale held at x, from those of the projection; and what its bias terms add."""
        read = affine(covectors, self.W.T, None)
        bias = covectors.new_zeros(len(covectors)) if self.b is None else (covectors * self.b.to(x)).sum((1, 2))
        if self.weight is not None:
            read = read * self.weight[:, None]
        if self.norm is None:
            return read, bias
        if self.norm.bias is not None:
            bias = bias + (read @ self.norm.bias.to(x)).sum(1)
        return self.norm.transposed(read, self.norm.scale(x)), bias


@dataclass(frozen=True)
class Projected:
    """Coefficients as factor · up + offset + constant, with the factor and the offset held at this run's values.

    Gated: the factor is act(gate); plain: act(up) / up. The offset goes with the gate too (GPT-OSS multiplies up + 1 by
    it), the constant does not (HookedTransformer adds a bias to the product).
    """

    up: Projection
    gate: Projection | None
    factor: Float[Tensor, "pos neuron"]
    offset: Float[Tensor, "pos neuron"] | None = None
    constant: Float[Tensor, "pos neuron"] | None = None

    @property
    def product(self) -> Float[Tensor, "pos neuron"]:
        """The coefficients without the constant."""
        product = self.factor * self.up.values
        return product if self.offset is None else product + self.offset

    @property
    def coefficients(self) -> Float[Tensor, "pos neuron"]:
        """The coefficients."""
        return self.product if self.constant is None else self.product + self.constant


def projected(run: Run, layer: int, group: NeuronsEverywhere, x: Float[Tensor, "pos d_model"]) -> Projected:
    """What a group of neurons reads of the residual stream x, and what it makes of it.

    Raises:
        UnsupportedModelError: if the layer's subkeys or its activation function cannot be read.
    """
    block = run.view.layer(layer)
    mixture = block.mixture()
    if mixture is None:
        return _of_ffn(run, layer, block.ffn(), x)
    assert group.expert is not None
    weight = run.activations.experts(layer, slice(len(x))).weights[0, :, group.expert]
    return _of_expert(mixture, group.expert, x, weight)


def _of_ffn(run: Run, layer: int, ffn: FFN, x: Float[Tensor, "pos d_model"]) -> Projected:
    require_readable(run, layer, ffn)
    assert ffn.W_in is not None
    assert ffn.activation is not None
    gate, up = ffn.projections(x)
    reads = Projection(up, ffn.W_in, ffn.b_in, ffn.norm, None)
    if gate is None or ffn.W_gate is None:
        return Projected(reads, None, ratio(ffn.activation(up).to(up), up))
    constant = None if ffn.b_post is None else ffn.b_post.to(up).expand_as(up)
    gates = Projection(gate, ffn.W_gate, ffn.b_gate, ffn.norm, None)
    return Projected(reads, gates, ffn.activation(gate).to(up), None, constant)


def _of_expert(
    mixture: MixtureOfExperts, number: int, x: Float[Tensor, "pos d_model"], weight: Float[Tensor, " pos"]
) -> Projected:
    expert, normed = mixture.expert(number), x if mixture.norm is None else mixture.norm(x)
    gate, up = mixture.pre_activations(number, normed, weight)
    factor, offset, _ = mixture.held(number, x, weight)
    sent = (weight != 0).to(x)[:, None]  # an idle expert would still compute something of its biases
    weighed = weight if mixture.weighs_input and number < mixture.n_routed else None
    return Projected(
        Projection(up, expert.W_in, expert.b_in, mixture.norm, weighed),
        Projection(gate, expert.W_gate, expert.b_gate, mixture.norm, weighed),
        factor * sent,
        offset * sent,
    )


def require_readable(run: Run, layer: int, ffn: FFN) -> None:
    """Refuse an FFN whose neurons' subkeys or activation function cannot be read.

    Raises:
        UnsupportedModelError: naming the layer.
    """
    if not ffn.readable:
        raise UnsupportedModelError(
            f"{run.view.name}: layer {layer} hides its FFN's input weights or its activation function, so its "
            "activation scores cannot be made; its subvalues still can."
        )


def ratio(values: Float[Tensor, "pos neuron"], of: Float[Tensor, "pos neuron"]) -> Float[Tensor, "pos neuron"]:
    """values / of, and 0 where both vanish: nothing is led through there then, and nothing is lost."""
    return torch.where(of == 0, 0.0, values / torch.where(of == 0, 1.0, of))
