"""Forward passes that leave a model as it was: one at a time, outside autocast, with no hook left whatever happens.

TransformerLens takes its hooks away after a run and after most exceptions, but not after a KeyboardInterrupt while it
adds them; and hooks of one thread act in another's run.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

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


def _hooks_of(point: Any) -> tuple[list[Any], list[Any], dict[int, Any], dict[int, Any]]:
    """TransformerLens's handles, and torch's functions by number: an interrupt may fall between the two."""
    return list(point.fwd_hooks), list(point.bwd_hooks), dict(point._forward_hooks), dict(point._backward_hooks)


def _put_back(point: Any, hooks: tuple[list[Any], list[Any], dict[int, Any], dict[int, Any]]) -> None:
    forward, backward, torch_forward, torch_backward = hooks
    point.fwd_hooks[:], point.bwd_hooks[:] = forward, backward
    for own, kept in ((point._forward_hooks, torch_forward), (point._backward_hooks, torch_backward)):
        for number in [number for number in own if number not in kept]:
            del own[number]
