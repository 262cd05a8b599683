"""What neurons read the residual stream with (arXiv 2312.12141, section 3): their subkeys, behind the frozen norm.

A plain FFN neuron's pre-activation, an attention neuron's value and the two projections of a gated FFN neuron are
each <covector, x> + bias, with x the residual stream that the sublayer reads and the covector the neuron's subkey,
pulled back through the norm before the sublayer, whose scale is held at this run's value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.run import Run
from tl_subvalues.labels import Component
from tl_subvalues.model_view import FFN, MixtureOfExperts, check_coefficients, check_values
from tl_subvalues.numerics.norms import Norm
from tl_subvalues.upstream.projections import require_readable


@dataclass(frozen=True)
class Subkeys:
    """Neurons as readers of x: neuron i reads <covectors[i], x> + biases[i]."""

    covectors: Float[Tensor, "neuron d_model"]
    biases: Float[Tensor, " neuron"]

    def times(self, factors: Float[Tensor, " neuron"], offsets: Float[Tensor, " neuron"]) -> "Subkeys":
        """The readings times a factor plus an offset, as subkeys."""
        return Subkeys(self.covectors * factors[:, None], self.biases * factors + offsets)


@dataclass(frozen=True)
class Readers:
    """Neurons of one sublayer at one position, and what they read there.

    `keys` read what the scores add up to, `sums_to`. Plain FFN: the pre-activation. Attention: the value. Gated FFN:
    the coefficient act(gate) * up, with act(gate) held at this run's value; `gate` and `up` are the two projections.
    """

    layer: int
    sublayer: str
    position: int
    sums_to: str  # "pre-activation", "value" or "coefficient"
    keys: Subkeys
    gate: Subkeys | None = None
    up: Subkeys | None = None


def readers_of(run: Run, components: Sequence[Component]) -> Readers:
    """Neurons of one sublayer (and one expert) that read at one position; each is one of the model's.

    Raises:
        ValueError: if they are no neurons, or read at a position that is not in this run.
        UnsupportedModelError: if their subkeys cannot be read, or do not give what the run computed.
    """
    first = components[0]
    if first.unit == "ffn_neuron":
        neurons = torch.tensor([c.neuron for c in components])
        mixture = run.view.layer(first.layer).mixture()
        if mixture is None:
            return _ffn_readers(run, first.layer, run.view.layer(first.layer).ffn(), neurons)
        run.parts(run.site(first.layer, "mlp"), "ffn_neuron").index(first)  # the token is sent to this expert
        assert first.expert is not None
        return _expert_readers(run, first.layer, mixture, first.expert, neurons)
    if first.unit != "attn_neuron":
        raise ValueError(
            "activation scores are of neurons, such as 'L24N1005' or 'L23H4D38@3', for only these read the residual "
            f"stream with one subkey each; this is a {first.unit.replace('_', ' ')}."
        )
    if first.position is None:
        raise ValueError("an attention neuron reads at a source position: name it, as in 'L23H4D38@3'.")
    sources = run.n_sources(first.layer)
    if not first.position < sources:
        raise ValueError(
            f"there is no position {first.position} in this trace: source positions run from 0 to {sources - 1}."
        )
    heads, dims = (torch.tensor([getattr(c, axis) for c in components]) for axis in ("head", "dim"))
    return _attn_readers(run.at(first.position), first.layer, heads, dims)


def _ffn_readers(run: Run, layer: int, ffn: FFN, neurons: Int[Tensor, " neuron"]) -> Readers:
    """Neurons of a dense FFN."""
    require_readable(run, layer, ffn)
    assert ffn.W_in is not None
    assert ffn.activation is not None
    x = run.read(layer, "mlp")
    gate, up = ffn.projections(x[None])
    m = run.activations.coefficients(layer, len(ffn.W_out), run.position)
    what = "its subkeys do not give its FFN coefficients"
    computed = ffn.coefficients(gate, up)
    chosen = neurons.to(m.device)  # in the others a hook may have acted
    check_coefficients(run.view, layer, what, computed[..., chosen], m[..., chosen], computed)
    up_keys = _subkeys(ffn.norm, x, ffn.W_in, ffn.b_in, neurons)
    if ffn.W_gate is None or gate is None:
        return Readers(layer, "mlp", run.position, "pre-activation", up_keys)
    open_gates = _chosen(ffn.activation(gate)[0].to(x), neurons)
    added = torch.zeros_like(open_gates) if ffn.b_post is None else _chosen(ffn.b_post, neurons).to(open_gates)
    gate_keys = _subkeys(ffn.norm, x, ffn.W_gate, ffn.b_gate, neurons)
    keys = up_keys.times(open_gates, added)
    return Readers(layer, "mlp", run.position, "coefficient", keys, gate_keys, up_keys)


def _expert_readers(
    run: Run, layer: int, mixture: MixtureOfExperts, expert: int, neurons: Int[Tensor, " neuron"]
) -> Readers:
    """Neurons of one expert, its routing weight held at this run's value like the gate."""
    x = run.read(layer, "mlp")
    routed = run.activations.experts(layer, run.position)
    weight = routed.weights[..., expert]
    factor, added, computed = mixture.held(expert, x[None], weight)
    what = f"the subkeys of its expert {expert} do not give its coefficients, unless they were clipped"
    chosen = neurons.to(computed.device)
    check_coefficients(run.view, layer, what, computed[..., chosen], routed.coefficients[expert][..., chosen], computed)
    weights = mixture.expert(expert)
    up = _subkeys(mixture.norm, x, weights.W_in, weights.b_in, neurons)
    gate = _subkeys(mixture.norm, x, weights.W_gate, weights.b_gate, neurons)
    if mixture.weighs_input and expert < mixture.n_routed:
        # The routing weight multiplies what the norm gives, its bias included, but not the projections' own biases.
        up, gate = (
            _weighed(keys, weight[0], bias, neurons) for keys, bias in ((up, weights.b_in), (gate, weights.b_gate))
        )
    keys = up.times(_chosen(factor[0], neurons), _chosen(added[0], neurons))
    return Readers(layer, "mlp", run.position, "coefficient", keys, gate, up)


def _weighed(keys: Subkeys, weight: Tensor, bias: Tensor | None, neurons: Int[Tensor, " neuron"]) -> Subkeys:
    own = torch.zeros_like(keys.biases) if bias is None else _chosen(bias, neurons).to(keys.biases)
    return Subkeys(keys.covectors * weight, (keys.biases - own) * weight + own)


def _attn_readers(run: Run, layer: int, heads: Int[Tensor, " neuron"], dims: Int[Tensor, " neuron"]) -> Readers:
    """Attention neurons (index `dims` of `heads`), reading at the run's position: their source position."""
    check_values(run.view, layer, run.activations, run.position, heads, dims)
    attention = run.view.layer(layer).attention()
    W_V, b_V = attention.W_V, attention.b_V
    assert W_V is not None
    x = run.read(layer, "attn")
    group, dims = attention.kv_head(heads).to(W_V.device), dims.to(W_V.device)
    bias = None if b_V is None else b_V[group, dims]
    return Readers(layer, "attn", run.position, "value", _pulled_back(attention.norm, x, W_V[group, :, dims], bias))


def _subkeys(norm: Norm | None, x: Tensor, W: Tensor, b: Tensor | None, neurons: Int[Tensor, " neuron"]) -> Subkeys:
    """The subkeys of neurons whose projection is norm(x) W + b."""
    return _pulled_back(norm, x, W[:, neurons.to(W.device)].T, None if b is None else _chosen(b, neurons))


def _pulled_back(norm: Norm | None, x: Tensor, subkeys: Tensor, bias: Tensor | None) -> Subkeys:
    """Subkeys behind the norm, as readers of x itself. The norm's own bias counts as part of the neuron's."""
    subkeys = subkeys.to(x)
    biases = x.new_zeros(len(subkeys)) if bias is None else bias.to(x)
    if norm is None:
        return Subkeys(subkeys, biases)
    if norm.bias is not None:
        biases = biases + subkeys @ norm.bias.to(x)
    return Subkeys(norm.transposed(subkeys, norm.scale(x)), biases)


def _chosen(values: Tensor, neurons: Int[Tensor, " neuron"]) -> Tensor:
    return values[neurons.to(values.device)]
