"""The true gradient of a target's measure, by autograd over the model's own forward pass, place by place.

Nothing is held: patterns, norms' scales and gates move too. A part's vector times the gradient where it is added is
coefficient × gradient, which predicts what taking that part alone out does; it does not add up to anything.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.everywhere import neurons
from tl_subvalues.decomposition.run import Run
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import shows_a_copy, sum_tolerance
from tl_subvalues.numerics.blocks import affine
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.covectors import Covectors, Entering

Take = Callable[[Covectors | Entering], None]


def gradients(run: Run, tokens: Tensor, target: Target, n: int, take: Take) -> None:
    """Hand the gradient at every sublayer to `take` as it comes, the last first; none is kept.

    Args:
        run: of the prompt, at the position where the target is predicted.
        tokens: the prompt.
        target: whose measure.
        n: how many first positions.
        take: gets a sublayer's covectors, one for each position, and at last those of what enters layer 0.

    Raises:
        UnsupportedModelError: if the model, run again, ends elsewhere than the run did, or no gradient reaches a
            sublayer.
    """
    leaf: list[Tensor] = []

    def enter(value: Tensor, hook: Any) -> Tensor:
        leaf[:] = [value.detach().clone().requires_grad_()]
        return leaf[0]

    hooks: list[tuple[str, Any]] = [("blocks.0.hook_resid_pre", enter)]
    for layer in run.view.layers:
        for sublayer in layer.sublayers:
            hooks += _Watch(run, layer.layer, sublayer, n, take).hooks()
    hooks.append(end_hook(run))
    with torch.inference_mode(False), torch.enable_grad():
        logits = run.view.logits(tokens[None].clone(), hooks)[0, run.position]
        value = target.value(logits.to(run.view.compute_dtype).log_softmax(-1))
        (entering,) = torch.autograd.grad(value, leaf)
    take(Entering(entering[:, :n].to(run.view.device, run.view.compute_dtype)))


def end_hook(run: Run) -> tuple[str, Any]:
    """A hook for a pass over the prompt, which raises unless the model ends where the run did."""

    def end(value: Tensor, hook: Any) -> Tensor:
        _require_same_end(run, value.detach()[0, run.position])
        return value

    return f"blocks.{run.view.n_layers - 1}.hook_resid_post", end


def _require_same_end(run: Run, again: Float[Tensor, " d_model"]) -> None:
    """Raise unless the model ends where the run did: a gradient of one model says nothing about another's parts."""
    known = run.activations.final_residual(run.position)[0]
    error = (again.to(known.device, known.dtype) - known).norm()
    if not error <= 10 * sum_tolerance(run.view) * known.norm():
        raise UnsupportedModelError(
            f"{run.view.name}: run again for its gradient, the model ends elsewhere than in the run that was traced "
            f"(the residual streams differ by {float(error / known.norm()):.2g} of their length), so the run was made "
            "under hooks, or its cache was edited; trace the prompt without them."
        )


class _Watch:
    """One sublayer's gradients: of its output first, then in its own space, as autograd reaches them."""

    def __init__(self, run: Run, layer: int, sublayer: str, n: int, take: Take) -> None:
        self._run, self._layer, self._sublayer, self._n, self._take = run, layer, sublayer, n, take
        self._block = run.view.layer(layer)
        self._output: Tensor | None = None

    def hooks(self) -> list[tuple[str, Any]]:
        """For one forward pass under autograd."""
        found = [(self._block.output_hook(self._sublayer), self._watching(self._take_output))]
        inner = self._inner_hook()
        return found if inner is None else [*found, (inner, self._watching(self._take_inner))]

    def _inner_hook(self) -> str | None:
        """Where its own space is seen: z, coefficients, or what experts add together."""
        if self._sublayer == "attn":
            return self._block.hook("attn.hook_z")
        if self._sublayer != "mlp":
            return None
        return self._block.hook("mlp.hook_post" if self._block.mixture() is None else "mlp.hook_out")

    def _watching(self, when_there: Callable[[Tensor], None]) -> Callable[..., Tensor]:
        def watch(value: Tensor, hook: Any) -> Tensor:
            value.register_hook(when_there)
            return value  # what a hook is shown may be a view of what the model goes on with

        return watch

    def _take_output(self, gradient: Tensor) -> None:
        self._output = self._cast(gradient)
        if self._inner_hook() is None:
            self._take(Covectors(self._layer, self._sublayer, self._output, ()))

    @torch.no_grad()
    def _take_inner(self, gradient: Tensor) -> None:
        if self._output is None:
            raise shows_a_copy(self._run.view.name, self._layer, self._sublayer)
        own = self._cast(gradient.reshape(1, self._run.n_positions, -1))
        inner: tuple[Tensor, ...] = (own,)
        if self._sublayer == "attn":
            attention = self._block.attention()
            inner = (own.unflatten(-1, (attention.n_heads, attention.d_head)),)
        elif self._block.mixture() is not None:
            groups = neurons(self._run, self._layer, self._n)
            inner = tuple(affine(own, group.directions.T, None) for group in groups)
        self._take(Covectors(self._layer, self._sublayer, self._output, inner))

    def _cast(self, gradient: Tensor) -> Float[Tensor, "1 pos *rest"]:
        view = self._run.view
        return gradient[:, : self._n].to(view.device, view.compute_dtype)
