"""The graph of FFN neurons at positions: what each adds to the coefficients of later ones, and to the score.

The edge a → b is what a adds to b's coefficient through attention and norms alone, other FFN neurons cut: ⟨what a adds,
b's subkey led back there⟩. One covector is led back for each node, all at once; for each node the edges of those kept,
of all other neurons together, of embeddings and of bias terms add up to its coefficient (to the score, for the target).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import einops
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_subvalues.decomposition.everywhere import HeadsEverywhere, NeuronsEverywhere, first_positions, heads, neurons
from tl_subvalues.decomposition.run import Run
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import sum_tolerance
from tl_subvalues.upstream.covectors import Covectors, Entering
from tl_subvalues.upstream.frozen import back
from tl_subvalues.upstream.projections import projected
from tl_subvalues.upstream.rules import Cut, Rule


@dataclass(frozen=True)
class Neuron:
    """An FFN neuron at a position."""

    layer: int
    neuron: int
    at: int
    expert: int | None = None


@dataclass(frozen=True)
class Flows:
    """What every source adds to every reader: readers are the target and then the neurons, in order."""

    from_neurons: Float[Tensor, "reader neuron"]
    from_embeddings: Float[Tensor, "reader pos"]
    others: Float[Tensor, " reader"]  # all FFN neurons that are no nodes, together
    bias: Float[Tensor, " reader"]
    read: Float[Tensor, " reader"]  # what they add up to: the score, and the coefficients
    carried: list["Carried"]


@dataclass(frozen=True)
class Carried:
    """How much of each flow the heads of one layer carried, by the first head that reads the source where it was added.

    Neurons come first, then embeddings by position.
    """

    layer: int
    shares: Float[Tensor, "reader source head"]


@dataclass(frozen=True)
class _Node:
    """A neuron as a source and as a reader."""

    vector: Float[Tensor, " d_model"]  # what it adds
    covector: Float[Tensor, " d_model"]  # what it reads the residual stream with
    bias: float  # what its own bias terms add to its coefficient
    coefficient: float


def flows_of(run: Run, rule: Rule, final: Float[Tensor, " d_model"], nodes: Sequence[Neuron]) -> Flows:
    """All flows between some neurons, embeddings, and the score.

    Args:
        run: at the position where the target is predicted.
        rule: how a coefficient is made linear in what a neuron reads.
        final: γ_final.
        nodes: FFN neurons at positions, none after the run's own.

    Raises:
        UnsupportedModelError: if nothing can be led back through a layer, or flows do not add up to what is read.
    """
    n = first_positions(run)
    made = _nodes(run, rule, nodes, n)
    start = final.new_zeros(1 + len(nodes), n, len(final))
    start[0, run.position] = final

    def reading(layer: int, sublayer: str) -> Float[Tensor, "reader pos d_model"] | None:
        here = [i for i, node in enumerate(nodes) if node.layer == layer] if sublayer == "mlp" else []
        if not here:
            return None
        found = torch.zeros_like(start)
        for i in here:
            found[1 + i, nodes[i].at] = made[i].covector
        return found

    flows = _Flowing(run, nodes, made, n, len(start))
    for covectors in back(run, Cut(), start, reading):
        flows.take(covectors)
    score = float(run.activations.final_residual(run.position)[0].double() @ final.double())
    return flows.finished(score)


def _nodes(run: Run, rule: Rule, nodes: Sequence[Neuron], n: int) -> list[_Node]:
    """Vectors and covectors of the neurons, layer by layer."""
    found: dict[int, _Node] = {}
    for layer in sorted({node.layer for node in nodes}):
        x = run.activations.residual(layer, "mlp")[0, :n]
        for group in neurons(run, layer, n):
            here = [i for i, node in enumerate(nodes) if (node.layer, node.expert) == (layer, group.expert)]
            if here:
                found |= _of_group(run, rule, layer, group, x, {i: nodes[i] for i in here})
    return [found[i] for i in range(len(nodes))]


def _of_group(
    run: Run, rule: Rule, layer: int, group: NeuronsEverywhere, x: Float[Tensor, "pos d_model"], here: dict[int, Neuron]
) -> dict[int, _Node]:
    """The nodes of one group of neurons: one-hot covectors of their coefficients, led through their projections."""
    made = projected(run, layer, group, x)
    factors = rule.factors(made)
    assert factors is not None
    pick = torch.zeros(len(here), *group.coefficients.shape, dtype=x.dtype, device=x.device)
    for row, node in enumerate(here.values()):
        pick[row, node.at, node.neuron] = 1.0
    read, bias = made.up.read_back(pick * factors.up, x)
    if factors.gate is not None and made.gate is not None:
        own, added = made.gate.read_back(pick * factors.gate, x)
        read, bias = read + own, bias + added
    for constant in factors.constants:
        bias = bias + (pick * constant).sum((1, 2))
    found = {}
    for row, (i, node) in enumerate(here.items()):
        m = group.coefficients[node.at, node.neuron]
        scale = None if group.scale is None else group.scale[node.at]
        vector = group.passage.carry(m * group.directions[node.neuron].to(x), scale)
        found[i] = _Node(vector, read[row, node.at], float(bias[row]), float(m))
    return found


class _Flowing:
    """Flows as covectors come, the last sublayer's first."""

    def __init__(self, run: Run, nodes: Sequence[Neuron], made: Sequence[_Node], n: int, readers: int) -> None:
        self._run, self._nodes, self._made, self._n = run, nodes, made, n
        like = run.activations.final_residual(run.position)[0]
        self._embedded = run.activations.residual(0, run.view.layers[0].sublayers[0])[0, :n]
        vectors = torch.stack([node.vector for node in made]) if made else like.new_zeros(0, len(like))
        self._sources = torch.cat([vectors, self._embedded])  # neurons, then embeddings
        self._at = torch.tensor([*(node.at for node in nodes), *range(n)])
        self._from_neurons = like.new_zeros(readers, len(nodes))
        self._from_embeddings = like.new_zeros(readers, n)
        self._others, self._bias = like.new_zeros(readers), like.new_zeros(readers)
        self._bias[1:] += torch.tensor([node.bias for node in made]).to(like)
        self._carried: list[Carried] = []

    def take(self, covectors: Covectors | Entering) -> None:
        """One sublayer's covectors, or those of what enters layer 0."""
        if isinstance(covectors, Entering):
            self._from_embeddings = einops.einsum(self._embedded, covectors.output, "pos d, k pos d -> k pos")
            return
        if covectors.bias is not None:
            self._bias += covectors.bias
        if covectors.sublayer == "mlp":
            self._take_neurons(covectors)
        else:
            self._take_heads(covectors, heads(self._run, covectors.layer, self._n))

    def _take_neurons(self, covectors: Covectors) -> None:
        for group, inner in zip(neurons(self._run, covectors.layer, self._n), covectors.inner, strict=True):
            # No products of all neurons and readers: `inner` is the largest there is.
            self._others += einops.einsum(group.coefficients, inner, "pos neuron, k pos neuron -> k")
            for i, node in enumerate(self._nodes):
                if (node.layer, node.expert) == (covectors.layer, group.expert):
                    self._from_neurons[:, i] = group.coefficients[node.at, node.neuron] * inner[:, node.at, node.neuron]
                    self._others -= self._from_neurons[:, i]

    def _take_heads(self, covectors: Covectors, parts: HeadsEverywhere) -> None:
        """What each head takes of every source where it was added: ⟨its value, the covector of the values there⟩."""
        attention = self._run.view.layer(covectors.layer).attention()
        assert attention.W_V is not None
        of_values = einops.einsum(parts.pattern, covectors.inner[0], "head pos key, k pos head dim -> k key head dim")
        x = self._run.activations.residual(covectors.layer, "attn")[0, : self._n]
        read = self._sources
        if attention.norm is not None:
            read = attention.norm.linear(read, attention.norm.scale(x)[self._at])
        kv = attention.kv_head(torch.arange(attention.n_heads)).to(attention.W_V.device)
        values = einops.einsum(read, attention.W_V.to(read), "source d, kv d dim -> source kv dim")[
            :, kv.to(read.device)
        ]
        shares = einops.einsum(values, of_values[:, self._at], "source head dim, k source head dim -> k source head")
        self._carried.append(Carried(covectors.layer, shares * self._earlier(covectors.layer)[None, :, None]))

    def _earlier(self, layer: int) -> Bool[Tensor, " source"]:
        """Which sources were added before an attention sublayer reads."""
        before = [node.layer < layer for node in self._nodes] + [True] * self._n
        return torch.tensor(before, device=self._sources.device)

    def finished(self, score: float) -> Flows:
        """The flows, checked to add up.

        Raises:
            UnsupportedModelError: if they do not.
        """
        like = self._others
        read = torch.tensor([score, *(node.coefficient for node in self._made)]).to(like)
        found = self._from_neurons.sum(1) + self._from_embeddings.sum(1) + self._others + self._bias
        size = self._from_neurons.abs().sum(1) + self._from_embeddings.abs().sum(1) + self._others.abs() + read.abs()
        error = (found - read).abs()
        if not bool((error <= 10 * sum_tolerance(self._run.view) * size).all()):
            worst = int((error - 10 * sum_tolerance(self._run.view) * size).argmax())
            raise UnsupportedModelError(
                f"{self._run.view.name}: what flows into a node adds up to {float(found[worst]):.4g}, not to the "
                f"{float(read[worst]):.4g} that it reads, so something in a block is led back otherwise than computed."
            )
        return Flows(self._from_neurons, self._from_embeddings, self._others, self._bias, read, self._carried[::-1])
