"""What neurons read the residual stream with (arXiv 2312.12141, section 3): their subkeys, behind the frozen norm.

A plain FFN neuron's pre-activation, an attention neuron's value and the two projections of a gated FFN neuron are
each <covector, x> + bias, with x the residual stream that the sublayer reads and the covector the neuron's subkey,
pulled back through the norm before the sublayer, whose scale is held at this run's value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.sites import Run
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import Component
from tl_subvalues.model_view import check_expert_keys, check_ffn_keys, check_value_keys
from tl_subvalues.numerics.norms import Norm


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
    """Neurons of one sublayer at one position, and what their scores add up to.

    Plain FFN: the pre-activation. Attention: the value. Gated FFN: the coefficient act(gate) * up, with act(gate) held
    at this run's value; `gate` and `up` are the two projections themselves.
    """

    position: int  # where they read
    sums_to: str  # "pre-activation", "value" or "coefficient"
    keys: Subkeys
    gate: Subkeys | None = None
    up: Subkeys | None = None


def _ffn_readers(run: Run, layer: int, neurons: Int[Tensor, " neuron"]) -> Readers:
    """FFN neurons of one layer, reading at the run's position.

    Raises:
        UnsupportedModelError: if the layer's subkeys cannot be read, or do not give the run's coefficients.
    """
    open_gates = check_ffn_keys(run.view, layer, run.activations, run.position)
    ffn = run.view.layer(layer).ffn()
    assert ffn.W_in is not None
    x = run.activations.residual(layer, "mlp", run.position)[0]
    up = _pulled_back(ffn.norm, x, ffn.W_in[:, neurons.to(ffn.W_in.device)].T, _chosen(ffn.b_in, neurons))
    if ffn.W_gate is None or open_gates is None:
        return Readers(run.position, "pre-activation", up)
    gate = _pulled_back(ffn.norm, x, ffn.W_gate[:, neurons.to(ffn.W_gate.device)].T, _chosen(ffn.b_gate, neurons))
    opened = open_gates[neurons.to(open_gates.device)]
    added = _chosen(ffn.b_post, neurons)
    keys = up.times(opened, torch.zeros_like(opened) if added is None else added.to(opened))
    return Readers(run.position, "coefficient", keys, gate, up)


def _expert_readers(run: Run, layer: int, expert: int, neurons: Int[Tensor, " neuron"]) -> Readers:
    """FFN neurons of one expert, its routing weight held at this run's value like the gate."""
    factor, added, weight = check_expert_keys(run.view, layer, run.activations, run.position, expert)
    mixture = run.view.layer(layer).mixture()
    assert mixture is not None
    weights = mixture.expert(expert)
    x = run.activations.residual(layer, "mlp", run.position)[0]
    up = _pulled_back(mixture.norm, x, weights.W_in[:, neurons.to(x.device)].T, _chosen(weights.b_in, neurons))
    gate = _pulled_back(mixture.norm, x, weights.W_gate[:, neurons.to(x.device)].T, _chosen(weights.b_gate, neurons))
    if mixture.weighs_input and expert < mixture.n_routed:
        # The routing weight multiplies what the norm gives, its bias included, but not the projections' own biases.
        up, gate = (
            _weighed(keys, weight, bias, neurons) for keys, bias in ((up, weights.b_in), (gate, weights.b_gate))
        )
    keys = up.times(factor[neurons.to(factor.device)], added[neurons.to(added.device)])
    return Readers(run.position, "coefficient", keys, gate, up)


def _weighed(keys: Subkeys, weight: Tensor, bias: Tensor | None, neurons: Int[Tensor, " neuron"]) -> Subkeys:
    own = torch.zeros_like(keys.biases) if bias is None else bias[neurons.to(bias.device)].to(keys.biases)
    return Subkeys(keys.covectors * weight, (keys.biases - own) * weight + own)


def _attn_readers(run: Run, layer: int, heads: Int[Tensor, " neuron"], dims: Int[Tensor, " neuron"]) -> Readers:
    """Attention neurons of one layer (index `dims` of `heads`), reading at the run's position: their source position.

    Raises:
        UnsupportedModelError: if the layer's value weights cannot be read, or do not give the run's values.
    """
    check_value_keys(run.view, layer, run.activations, run.position)
    attention = run.view.layer(layer).attention()
    W_V, b_V = attention.W_V, attention.b_V
    assert W_V is not None
    group = (heads // (attention.n_heads // len(W_V))).to(W_V.device)  # of query heads that share values
    dims = dims.to(W_V.device)
    x = run.activations.residual(layer, "attn", run.position)[0]
    keys = _pulled_back(attention.norm, x, W_V[group, :, dims], None if b_V is None else b_V[group, dims])
    return Readers(run.position, "value", keys)


def readers_of(run: Run, components: Sequence[Component]) -> Readers:
    """Neurons of one sublayer that read at one position.

    Raises:
        ValueError: if one is no neuron, or none of this run.
        UnsupportedModelError: if their subkeys cannot be read, or do not give what the run computed.
    """
    layer, kind = components[0].layer, components[0].unit
    numbers = [c.neuron for c in components]
    if kind == "ffn_neuron" and (mixture := run.view.layer(layer).mixture()) is not None:
        run.parts(run.site(layer, "mlp"), "ffn_neuron").index(components[0])  # is there such an expert, and active?
        expert = int(components[0].expert or 0)
        return _expert_readers(run, layer, expert, _indices("neuron", numbers, len(mixture.expert(expert).W_out)))
    if kind == "ffn_neuron":
        run.parts(run.site(layer, "mlp"), "ffn_neuron").index(replace(components[0], neuron=0))
        return _ffn_readers(run, layer, _indices("neuron", numbers, len(run.view.layer(layer).ffn().W_out)))
    if kind != "attn_neuron":
        raise ValueError(
            "activation scores are of neurons, such as 'L24N1005' or 'L23H4D38@3', for only these read the residual "
            f"stream with one subkey each; this is a {kind.replace('_', ' ')}."
        )
    n_heads, d_head, _ = run.view.layer(layer).attention().W_O.shape
    heads = _indices("head", [c.head for c in components], n_heads)
    dims = _indices("dim", [c.dim for c in components], d_head)
    source = int(_indices("position", [components[0].position], len(run.weighted_values(layer)))[0])
    return _attn_readers(run.at(source), layer, heads, dims)


def check_sum(
    run: Run,
    layer: int,
    sublayer: str,
    what: str,
    covectors: Float[Tensor, "neuron d_model"],
    sums: Float[Tensor, " neuron"],
    sizes: Float[Tensor, " neuron"],
) -> None:
    """Check that scores against all earlier components add up to what neurons read of the residual stream.

    Args:
        run: at the position where they read.
        layer: whose neurons they are.
        sublayer: "attn" or "mlp".
        what: the scores add up to, for the message.
        covectors: that they read with.
        sums: of each neuron's scores.
        sizes: of each neuron's scores, taken without their signs.

    Raises:
        UnsupportedModelError: if something that is not among the components was added to the residual stream.
    """
    x = run.activations.residual(layer, sublayer, run.position)[0]
    parts = [*run.embeddings().values(), *(site.output for site in run.read_by(layer, sublayer))]
    # The residual stream is rounded at every addition, in the model's dtype; beyond that, 3e-7 of the size was seen.
    added = torch.stack(parts).norm(dim=-1).sum() * torch.finfo(run.view.dtype).eps
    limit = 1e-4 * sizes + covectors.norm(dim=-1).to(sizes) * added.to(sizes)
    error = (sums - (covectors @ x.to(covectors)).to(sums)).abs()
    if not bool((error <= limit).all()):
        worst = int((error - limit).argmax())
        raise UnsupportedModelError(
            f"{run.view.name}: what reaches layer {layer} at position {run.position} is not the sum of the earlier "
            f"sublayers' outputs, so the scores would not add up to the {what} (off by {float(error[worst]):.2g} where "
            f"they amount to {float(sizes[worst]):.2g})."
        )


def _pulled_back(norm: Norm | None, x: Tensor, subkeys: Tensor, bias: Tensor | None) -> Subkeys:
    """Subkeys behind the norm, as readers of x itself. The norm's own bias counts as part of the neuron's."""
    subkeys = subkeys.to(x)
    biases = x.new_zeros(len(subkeys)) if bias is None else bias.to(x)
    if norm is None:
        return Subkeys(subkeys, biases)
    if norm.bias is not None:
        biases = biases + subkeys @ norm.bias.to(x)
    return Subkeys(norm.transposed(subkeys, norm.scale(x)), biases)


def _chosen(bias: Tensor | None, neurons: Int[Tensor, " neuron"]) -> Tensor | None:
    return None if bias is None else bias[neurons.to(bias.device)]


def _indices(what: str, values: Sequence[int | None], size: int) -> Int[Tensor, " n"]:
    if None in values:
        raise ValueError("an attention neuron reads at a source position: name it, as in 'L23H4D38@3'.")
    chosen = torch.tensor(values)
    if chosen.max() >= size:
        raise ValueError(f"there is no {what} {int(chosen.max())} in this trace: it runs from 0 to {size - 1}.")
    return chosen
