"""Mixtures of experts: where a layer keeps its router, its experts and its shared expert, and what they compute.

    FFN output = sum over experts e, neurons n of  w_e * m_{e,n} * W_out[e, n]  +  sum over e of  w_e * b_out[e]

w_e is the routing weight (0 for an expert that the token is not sent to) and m_{e,n} the coefficient inside the expert.
Llama 4 weighs an expert's input instead of its output. No hook gives all of this in every family, so it is computed
again: the routing by the model's own router, called on the run's input of the sublayer in the model's own dtype, the
coefficients in float32 (float64 for float64). Every use of the result is checked against what the run added.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.model_view.modules import unwrapped
from tl_subvalues.numerics.blocks import affine
from tl_subvalues.numerics.norms import Norm, Passage


@dataclass(frozen=True)
class Plan:
    """Attribute names of one kind of block, as Hugging Face transformers 5 has them."""

    router: str = "gate"
    shared: str | None = None  # an expert for all tokens
    shared_gate: str | None = None  # its sigmoid gate
    router_bias: str | None = None  # what the block hands to its router, beside the tokens
    factor: str | None = None  # what the block multiplies the routed experts' sum by
    whole_batch: bool = False  # the router takes [batch, token, d_model]
    weighs_input: bool = False


_ROUTED, _ROUTER = Plan(), Plan("router")
_SHARED, _GATED = Plan(shared="shared_experts"), Plan(shared="shared_expert", shared_gate="shared_expert_gate")
# Class of the block -> its plan. A class that is not here is refused by name.
PLANS: dict[str, Plan] = {
    **dict.fromkeys(("MixtralSparseMoeBlock", "OlmoeSparseMoeBlock", "FlexOlmoSparseMoeBlock"), _ROUTED),
    **dict.fromkeys(("Qwen3MoeSparseMoeBlock",), _ROUTED),
    **dict.fromkeys(("PhimoeSparseMoeBlock", "GraniteMoeMoE", "GptOssMLP", "JambaSparseMoeBlock"), _ROUTER),
    **dict.fromkeys(("DeepseekV2Moe", "DeepseekV3MoE", "Glm4MoeMoE", "Glm4MoeLiteMoE"), _SHARED),
    **dict.fromkeys(("Ernie4_5_MoeSparseMoeBlock",), _SHARED),
    **dict.fromkeys(("Qwen2MoeSparseMoeBlock", "Qwen3NextSparseMoeBlock"), _GATED),
    "AfmoeSparseMoeBlock": Plan("router", shared="shared_experts", router_bias="expert_bias", whole_batch=True),
    "Lfm2MoeSparseMoeBlock": Plan(router_bias="expert_bias"),
    "MiniMaxM2SparseMoeBlock": Plan(router_bias="e_score_correction_bias"),
    "LagunaSparseMoeBlock": Plan(shared="shared_experts", factor="routed_scaling_factor"),
    "Llama4TextMoe": Plan("router", shared="shared_expert", weighs_input=True),
}


@dataclass(frozen=True)
class Expert:
    """Weights of one expert, views of the model's own; `MixtureOfExperts.activate` says what its neurons compute."""

    W_in: Float[Tensor, "d_model neuron"]
    b_in: Float[Tensor, " neuron"] | None
    W_gate: Float[Tensor, "d_model neuron"]
    b_gate: Float[Tensor, " neuron"] | None
    W_out: Float[Tensor, "neuron d_model"]
    b_out: Float[Tensor, " d_model"] | None


@dataclass(frozen=True)
class Routed:
    """What the experts of one layer do at some positions of one run."""

    weights: Float[Tensor, "batch *pos expert"]  # routing weights, 0 for an expert that a token is not sent to
    coefficients: dict[int, Float[Tensor, "batch *pos neuron"]]  # of every expert that some of the tokens are sent to
    bias: Float[Tensor, "batch *pos d_model"] | None  # the experts' own biases, each times its routing weight


class MixtureOfExperts:
    """A feed-forward sublayer made of experts, the routed ones first and the shared one, if any, after them.

    `norm` is the one it reads through, `passage` what stands between its sum and the residual stream, `weighs_input`
    whether a routing weight multiplies an expert's input instead of its output.
    """

    def __init__(self, block: Any, norm: Norm | None, passage: Passage) -> None:
        """`block` is the mixture's own module; NotImplementedError says why it cannot be read."""
        name = type(block).__name__
        if name not in PLANS:
            raise NotImplementedError(f"{name} is a mixture of experts of a kind that is not covered")
        self.norm, self.passage = norm, passage
        self._plan = PLANS[name]
        self.weighs_input = self._plan.weighs_input
        self._block = block
        self._experts = unwrapped(getattr(block, "experts", None))
        self._shared = unwrapped(getattr(block, self._plan.shared or "", None))
        gate_up, down = (getattr(self._experts, part, None) for part in ("gate_up_proj", "down_proj"))
        if not all(isinstance(stack, Tensor) and stack.ndim == 3 for stack in (gate_up, down)):
            raise NotImplementedError(f"{name} keeps its experts otherwise than in two stacks (transformers before 5?)")
        if getattr(self._experts, "has_post_expert_norm", False):
            raise NotImplementedError(f"{name} norms each expert's output")
        self.n_routed = len(self._experts.down_proj)

    def __len__(self) -> int:
        """Number of experts, the shared one included."""
        return self.n_routed + (self._shared is not None)

    def expert(self, number: int) -> Expert:
        """Weights of one expert; number `n_routed` is the shared one."""
        if number == self.n_routed and self._shared is not None:
            W_in, b_in = _linear(self._shared.up_proj)
            W_gate, b_gate = _linear(self._shared.gate_proj)
            W_out, b_out = _linear(self._shared.down_proj)
            return Expert(W_in, b_in, W_gate, b_gate, W_out, b_out)
        experts = self._experts
        fused, W_out = experts.gate_up_proj[number].detach(), experts.down_proj[number].detach()
        if not self._transposed:
            fused, W_out = fused.T, W_out.T
        b_fused = getattr(experts, "gate_up_proj_bias", None)
        b_out = getattr(experts, "down_proj_bias", None)
        gate, up = self._halves(fused.shape[-1])
        return Expert(
            W_in=fused[:, up],
            b_in=None if b_fused is None else b_fused[number, up].detach(),
            W_gate=fused[:, gate],
            b_gate=None if b_fused is None else b_fused[number, gate].detach(),
            W_out=W_out,
            b_out=None if b_out is None else b_out[number].detach(),
        )

    def weights(self, x: Float[Tensor, "token d_model"], dtype: torch.dtype) -> Float[Tensor, "token expert"]:
        """Routing weight of every expert for every token, 0 where it is not sent there; the shared expert's comes last.

        `x` is what the sublayer reads, in the model's dtype and, since routers round as they please, all tokens of the
        run at once, as the model itself had them.
        """
        router = unwrapped(getattr(self._block, self._plan.router))
        own = next(router.parameters())
        x = x.to(own)
        arguments = [] if self._plan.router_bias is None else [self._router_bias()]
        answer = router(x[None] if self._plan.whole_batch else x, *arguments)
        if self.weighs_input:
            weights = answer[0].to(dtype)
        else:
            _, top, index = answer
            weights = torch.zeros(len(x), self.n_routed, dtype=dtype, device=own.device)
            weights.scatter_(1, index.long().view(len(x), -1), top.to(dtype).view(len(x), -1))
        if self._plan.factor is not None:
            weights = weights * float(getattr(self._block, self._plan.factor))
        if self._shared is None:
            return weights
        shared = weights.new_ones(len(x), 1)
        if self._plan.shared_gate is not None:
            shared = torch.sigmoid(unwrapped(getattr(self._block, self._plan.shared_gate))(x)).to(weights)
        return torch.cat([weights, shared], 1)

    def pre_activations(
        self, number: int, x: Float[Tensor, "token d_model"], weight: Float[Tensor, " token"]
    ) -> tuple[Float[Tensor, "token neuron"], Float[Tensor, "token neuron"]]:
        """(x W_gate + b_gate, x W_in + b_in) of one expert, with x weighed first where that is the family's way."""
        expert = self.expert(number)
        if self.weighs_input and number < self.n_routed:
            x = x * weight[:, None]
        return affine(x, expert.W_gate, expert.b_gate), affine(x, expert.W_in, expert.b_in)

    def coefficients(
        self, number: int, x: Float[Tensor, "token d_model"], weight: Float[Tensor, " token"]
    ) -> Float[Tensor, "token neuron"]:
        """What each of an expert's neurons multiplies its row of W_out by: the routing weight times its activation."""
        gate, up = self.pre_activations(number, x, weight)
        m = self.activate(number, gate, up)
        return m if self.weighs_input and number < self.n_routed else m * weight[:, None]

    def held(
        self, number: int, x: Float[Tensor, "token d_model"], weight: Float[Tensor, " token"]
    ) -> tuple[Float[Tensor, "token neuron"], Float[Tensor, "token neuron"], Float[Tensor, "token neuron"]]:
        """With an expert's gate held as it is: what its up projection is multiplied by, what is added, and the sum.

        `x` is the residual stream. The sum is the coefficient, unless the up projection was clipped on its way.
        """
        gate, up = self.pre_activations(number, x if self.norm is None else self.norm(x), weight)
        outside = torch.ones_like(weight) if self.weighs_input and number < self.n_routed else weight
        zero, one = (self.activate(number, gate, torch.full_like(up, value)) for value in (0.0, 1.0))
        factor, added = (one - zero) * outside[:, None], zero * outside[:, None]
        return factor, added, factor * up + added

    def activate(
        self, number: int, gate: Float[Tensor, "token neuron"], up: Float[Tensor, "token neuron"]
    ) -> Float[Tensor, "token neuron"]:
        """The activation of one expert's neurons, by the model's own function: act(gate) * up in most families."""
        module = self._shared if number == self.n_routed else self._experts
        own = getattr(module, "_apply_gate", None)
        if own is None:
            act = module.act_fn if hasattr(module, "act_fn") else module.activation_fn
            return act(gate) * up
        fused = gate.new_empty(*gate.shape[:-1], 2 * gate.shape[-1])
        first, second = self._halves(fused.shape[-1])
        fused[..., first], fused[..., second] = gate, up
        return own(fused)

    def routed(self, x: Float[Tensor, "batch *pos d_model"], weights: Float[Tensor, "batch *pos expert"]) -> Routed:
        """What the experts do with inputs x, sent to them with these weights; idle experts are left out."""
        flat, flat_weights = x.flatten(0, -2), weights.flatten(0, -2)
        coefficients = {}
        for number in torch.nonzero((flat_weights != 0).any(0)).flatten().tolist():
            weight = flat_weights[:, number]
            rows = torch.nonzero(weight).flatten()
            some = self.coefficients(number, flat[rows], weight[rows])
            m = flat.new_zeros(len(flat), some.shape[-1]).index_copy_(0, rows, some)
            coefficients[number] = m.view(*x.shape[:-1], -1)
        bias = self.bias(flat_weights)
        return Routed(weights, coefficients, None if bias is None else bias.view(x.shape))

    def bias(self, weights: Float[Tensor, "token expert"]) -> Float[Tensor, "token d_model"] | None:
        """What the experts' own biases add, each times its routing weight; None without biases."""
        routed = getattr(self._experts, "down_proj_bias", None)
        shared = None if self._shared is None else self.expert(self.n_routed).b_out
        if routed is None and shared is None:
            return None
        stacks = [b for b in (routed, None if shared is None else shared[None]) if b is not None]
        used = weights[:, : self.n_routed] if shared is None else weights if routed is not None else weights[:, -1:]
        return used @ torch.cat(stacks).detach().to(weights)

    @property
    def _transposed(self) -> bool:
        """Whether the stacks are [expert, in, out]; Llama 4's, which have no such flag, are."""
        return bool(getattr(self._experts, "is_transposed", self._plan.weighs_input))

    def _halves(self, width: int) -> tuple[slice, slice]:
        """Where the gate and the up projection are in what is stored as one: side by side, or in turn."""
        if getattr(self._experts, "is_concatenated", True):
            return slice(0, width // 2), slice(width // 2, width)
        return slice(0, width, 2), slice(1, width, 2)

    def _router_bias(self) -> Any:
        used = getattr(self._block, "use_expert_bias", True)  # LFM 2 can do without
        return getattr(self._block, str(self._plan.router_bias)) if used else None


def _linear(module: Any) -> tuple[Tensor, Tensor | None]:
    linear = unwrapped(module)
    return linear.weight.detach().T, None if linear.bias is None else linear.bias.detach()
