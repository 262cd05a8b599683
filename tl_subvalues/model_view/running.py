"""Forward passes that leave a model as it was: one at a time, outside autocast, with no hook left whatever happens.

They unembed what is read and no other position: a vocabulary of 262,000 words is three fifths of a small model's work.

TransformerLens takes its hooks away after a run and after most exceptions, but not after a KeyboardInterrupt while it
adds them; and hooks of one thread act in another's run.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view.releases import model_name
from tl_subvalues.numerics.blocks import no_autocast

_LOCKS: "WeakKeyDictionary[Any, threading.RLock]" = WeakKeyDictionary()
_MAKING = threading.Lock()


def _lock_of(model: Any) -> Any:  # Python 3.11 has threading.RLock as a function, which is no type to beartype
    with _MAKING:
        return _LOCKS.setdefault(model, threading.RLock())


def hook_points_of(model: Any) -> list[Any]:
    """Every hook point of a model once, by whatever names it has."""
    return list({id(point): point for point in model.hook_dict.values()}.values())


@contextmanager
def left_as_it_was(model: Any, hook_points: Sequence[Any]) -> Iterator[None]:
    """Run a model inside: no other thread does meanwhile, and after an exception of any kind its hooks are as before.

    Autocast is off, for in it the sums of a float32 model hold to half precision only.
    """
    with _lock_of(model), no_autocast():
        level = getattr(model, "context_level", None)
        before = [(point, _hooks_of(point)) for point in hook_points]
        try:
            yield
        except BaseException:
            for point, hooks in before:
                if _hooks_of(point) != hooks:
                    _put_back(point, hooks)
            if level is not None:
                model.context_level = level
            raise


@contextmanager
def unembedded_at(
    model: Any, hook_points: Sequence[Any], shape: Sequence[int], places: Sequence[tuple[int, int]]
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Run a model inside, and it makes logits at some places alone, each a prompt's row in the batch and a position.

    Gives what makes [place, vocab] of the logits that the model returned. All of them are made, and picked from, where
    something else might look at them or run the model too: with hooks of the model's owner, or where logits come from
    elsewhere than the unembedding module. Another thread's run is left alone.

    Args:
        model: whose run it is.
        hook_points: of the model, before the run's own hooks are there.
        shape: rows and positions of the run's tokens.
        places: what is read.
    """
    unembed, thread = model._modules.get("unembed"), threading.get_ident()
    alone = unembed is not None and not _is_watched(unembed, hook_points)
    narrowed: list[Any] = []

    def narrow(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        own = threading.get_ident() == thread and len(inputs) > 0 and isinstance(inputs[0], Tensor)
        if not own or inputs[0].ndim != 3 or inputs[0].shape[:2] != tuple(shape):
            return None
        narrowed[:] = [module]
        return (_picked(inputs[0], places), *inputs[1:])

    def at(logits: Tensor) -> Tensor:
        if not narrowed:
            return _picked(logits, places)[:, 0].clone()  # a view would keep them all
        if logits.shape[:-1] != (len(places), 1):
            raise UnsupportedModelError(
                f"{model_name(model)} makes logits of shape {tuple(logits.shape)} where {len(places)} positions are "
                "unembedded, so what it does after its unembedding is not known, and its readout is not covered."
            )
        return logits[:, 0]

    hooks = {} if unembed is None else unembed._forward_pre_hooks
    try:
        if alone:
            unembed.register_forward_pre_hook(narrow)
        yield at
    finally:
        for number in [number for number, hook in hooks.items() if hook is narrow]:
            del hooks[number]


def _is_watched(unembed: Any, hook_points: Sequence[Any]) -> bool:
    """Whether a model has hooks, at its hook points or where it unembeds."""
    inside = [m for m in unembed.modules() if m._forward_hooks or m._forward_pre_hooks]
    return bool(inside) or any(point.fwd_hooks or point._forward_hooks for point in hook_points)


def _picked(values: Float[Tensor, "batch pos n"], places: Sequence[tuple[int, int]]) -> Float[Tensor, "place 1 n"]:
    """The values at some places; a view where it is the same position of every row."""
    rows, positions = [row for row, _ in places], [position for _, position in places]
    if rows == list(range(len(values))) and len(set(positions)) == 1:
        return values.narrow(1, positions[0], 1)
    return values[rows, positions][:, None]


def _hooks_of(point: Any) -> tuple[list[Any], list[Any], dict[int, Any], dict[int, Any]]:
    """TransformerLens's handles, and torch's functions by number: an interrupt may fall between the two."""
    return list(point.fwd_hooks), list(point.bwd_hooks), dict(point._forward_hooks), dict(point._backward_hooks)


def _put_back(point: Any, hooks: tuple[list[Any], list[Any], dict[int, Any], dict[int, Any]]) -> None:
    forward, backward, torch_forward, torch_backward = hooks
    point.fwd_hooks[:], point.bwd_hooks[:] = forward, backward
    for own, kept in ((point._forward_hooks, torch_forward), (point._backward_hooks, torch_backward)):
        for number in [number for number in own if number not in kept]:
            del own[number]
