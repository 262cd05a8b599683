"""The true gradient of a target's measure, by autograd over the model's own forward pass, place by place.

Nothing is held: patterns, norms' scales and gates move too. A part's vector times the gradient where it is added is
coefficient × gradient, which predicts what taking that part alone out does; it does not add up to anything.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.everywhere import neurons
from tl_subvalues.decomposition.run import Run
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import ModelView, shows_a_copy, sum_tolerance
from tl_subvalues.numerics.blocks import affine
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.covectors import Covectors, Entering

Take = Callable[[Covectors | Entering], None]
# Bytes that autograd may keep of several prompts in one pass, counted as a Llama's: 84 for each number of the residual
# stream, token and layer in float32, 47 in bfloat16; twice its patterns; and twice its logits where it is read.
_BYTES = 512 << 20
_KEPT = 84 / 4


@dataclass(frozen=True)
class Asked:
    """The gradient at every sublayer of one run, handed to `take` as it comes, the last first; none is kept."""

    run: Run  # of the prompt, at the position where the target is predicted
    tokens: Int[Tensor, " pos"]
    target: Target  # whose measure
    n: int  # how many first positions
    take: Take  # gets a sublayer's covectors, one for each position, and at last those of what enters layer 0


def gradients(many: Sequence[Asked]) -> None:
    """Gradients of several runs of one model, of few prompts in one forward and backward pass.

    Prompts that a model answers otherwise in company (padded on the left and masked) are run alone.

    Raises:
        UnsupportedModelError: if the model, run again, ends elsewhere than a run did, or no gradient reaches a
            sublayer.
    """
    for batch in _batches(many) if many else ():
        if len(batch) == 1 or not _gradients(batch, alone=False):
            for one in batch:
                _gradients([one], alone=True)


def _batches(many: Sequence[Asked]) -> Iterator[list[Asked]]:
    """In order, so many together as fill a pass."""
    view, batch = many[0].run.view, list[Asked]()
    for one in many:
        if batch and len(batch) >= prompts_together(view, max(len(each.tokens) for each in [*batch, one])):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def prompts_together(view: ModelView, n_tokens: int) -> int:
    """How many prompts of so many tokens one pass under autograd is to have; a long one goes alone."""
    if view.is_long(n_tokens):
        return 1
    tokens, logits = n_tokens * int(_KEPT * view.n_layers * view.model.cfg.d_model), 2 * view.readout.d_vocab
    return max(1, _BYTES // ((tokens + 2 * view.patterns_of(n_tokens) + logits) * view.dtype.itemsize))


class _EndsElsewhereError(Exception):
    """In company, a run does not end where it did alone."""


def _gradients(batch: Sequence[Asked], *, alone: bool) -> bool:
    """One pass; whether all ended where their runs did, without which nothing was handed out."""
    view, leaf = batch[0].run.view, list[Tensor]()
    longest = max(len(one.tokens) for one in batch)
    starts = [longest - len(one.tokens) for one in batch]

    def enter(value: Tensor, hook: Any) -> Tensor:
        leaf[:] = [value.detach().clone().requires_grad_()]
        return leaf[0]

    def end(value: Tensor, hook: Any) -> Tensor:
        errors = [
            _error_at_the_end(one.run, value.detach()[row, start + one.run.position])
            for row, (one, start) in enumerate(zip(batch, starts, strict=True))
        ]
        far = [error for error in torch.stack(errors).tolist() if not error <= 10 * sum_tolerance(view)]
        if far:
            raise _ends_elsewhere(view.name, far[0]) if alone else _EndsElsewhereError
        return value

    hooks: list[tuple[str, Any]] = [("blocks.0.hook_resid_pre", enter)]
    for layer in view.layers:
        for sublayer in layer.sublayers:
            hooks += _Watch(batch, starts, layer.layer, sublayer).hooks()
    hooks.append((f"blocks.{view.n_layers - 1}.hook_resid_post", end))
    with torch.inference_mode(False), torch.enable_grad():
        try:
            positions = [one.run.position for one in batch]
            logits = view.logits_together([one.tokens.clone() for one in batch], positions, hooks)
        except _EndsElsewhereError:
            return False
        except torch.OutOfMemoryError:
            if alone:
                raise
            return False
        values = [
            one.target.value(own.to(view.compute_dtype).log_softmax(-1)) for one, own in zip(batch, logits, strict=True)
        ]
        (entering,) = torch.autograd.grad(torch.stack(values).sum(), leaf)
    for row, (one, start) in enumerate(zip(batch, starts, strict=True)):
        one.take(Entering(_own(one, entering, row, start)))
    return True


def _own(one: Asked, gradient: Float[Tensor, "batch pos *rest"], row: int, start: int) -> Float[Tensor, "1 _ *rest"]:
    """A run's own of a batch's gradients, at its first positions, as they are computed with."""
    view = one.run.view
    return gradient[row : row + 1, start : start + one.n].to(view.device, view.compute_dtype)


def end_hook(run: Run) -> tuple[str, Any]:
    """A hook for a pass over the prompt, which raises unless the model ends where the run did.

    A gradient of one model says nothing about another's parts.
    """

    def end(value: Tensor, hook: Any) -> Tensor:
        error = float(_error_at_the_end(run, value.detach()[0, run.position]))
        if not error <= 10 * sum_tolerance(run.view):
            raise _ends_elsewhere(run.view.name, error)
        return value

    return f"blocks.{run.view.n_layers - 1}.hook_resid_post", end


def _error_at_the_end(run: Run, again: Float[Tensor, " d_model"]) -> Float[Tensor, ""]:
    """By what part of its length the last residual stream differs from the run's."""
    known = run.activations.final_residual(run.position)[0]
    least = torch.finfo(known.dtype).tiny
    return (again.to(known.device, known.dtype) - known).norm() / known.norm().clamp(min=least)


def _ends_elsewhere(name: str, error: float) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name}: run again for its gradient, the model ends elsewhere than in the run that was traced (the residual "
        f"streams differ by {error:.2g} of their length), so the run was made under hooks, or its cache was edited; "
        "trace the prompt without them."
    )


class _Watch:
    """One sublayer's gradients: of its output first, then in its own space, as autograd reaches them."""

    def __init__(self, batch: Sequence[Asked], starts: Sequence[int], layer: int, sublayer: str) -> None:
        self._batch, self._starts, self._layer, self._sublayer = batch, starts, layer, sublayer
        self._view = batch[0].run.view
        self._block = self._view.layer(layer)
        self._outputs: list[Tensor] | None = None

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
        self._outputs = self._each(gradient)
        if self._inner_hook() is None:
            for one, output in zip(self._batch, self._outputs, strict=True):
                one.take(Covectors(self._layer, self._sublayer, output, ()))

    @torch.no_grad()
    def _take_inner(self, gradient: Tensor) -> None:
        if self._outputs is None:
            raise shows_a_copy(self._view.name, self._layer, self._sublayer)
        width = max(len(one.tokens) for one in self._batch)
        owns = self._each(gradient.reshape(len(self._batch), width, -1))
        for one, output, own in zip(self._batch, self._outputs, owns, strict=True):
            one.take(Covectors(self._layer, self._sublayer, output, self._inner(one, own)))

    def _inner(self, one: Asked, own: Float[Tensor, "1 pos space"]) -> tuple[Tensor, ...]:
        """A run's gradients in the space of each group of its parts."""
        if self._sublayer == "attn":
            attention = self._block.attention()
            return (own.unflatten(-1, (attention.n_heads, attention.d_head)),)
        if self._block.mixture() is None:
            return (own,)
        groups = neurons(one.run, self._layer, one.n)
        return tuple(affine(own, group.directions.T, None) for group in groups)

    def _each(self, gradient: Float[Tensor, "batch pos *rest"]) -> list[Tensor]:
        pairs = enumerate(zip(self._batch, self._starts, strict=True))
        return [_own(one, gradient, row, start) for row, (one, start) in pairs]
