"""What work asks of a device: operations that it is given, and results that the host waits for."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.placed import CPU, Placement, place, place_of
from tl_subvalues.model_view import view_of
from tl_subvalues.readout.asked import Asked
from tl_subvalues.tracing.prompt import trace_of_run
from tl_subvalues.tracing.trace import Trace

# What needs the result of a device at once: a number, a list, or how many there are.
_ASKING = {
    *(Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero, torch.equal, Tensor.equal),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__, torch.allclose),
    *(Tensor.unique, torch.unique, torch.unique_consecutive, Tensor.unique_consecutive, torch.bincount),
}


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


class Waits(Placement):
    """Counts, by function, how often the host waits for a result of a pretended device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Iterable, args: Sequence = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((list(args), kwargs)) if isinstance(leaf, Tensor)]
        if any(place_of(tensor) != CPU for tensor in tensors):
            index = [leaf for leaf in tree_leaves(list(args[1:2])) if isinstance(leaf, Tensor)]
            masked = func in (Tensor.__getitem__, Tensor.__setitem__) and any(i.dtype == torch.bool for i in index)
            home = func is Tensor.to and self._target(func, args, kwargs or {}) == CPU
            if func in _ASKING or masked or home:
                self.names[func.__name__] += 1
        return super().__torch_function__(func, types, args, kwargs)


def operations(work: Callable[[], Any]) -> int:
    """How many a second call asks for; what is made once is not of interest."""
    work()
    with Counted() as counted:
        work()
    return sum(counted.names.values())


def waits(model: Any, tokens: Tensor, position: int, target: int, work: Callable[[Trace], Any]) -> Counter[str]:
    """For what the host waits in a trace of a finished run, and in what is asked of it, were all on an accelerator."""
    logits, cache = view_of(model).run_at(tokens, position)
    with Waits() as counted:
        for tensor in (*model.parameters(), *model.buffers(), *cache.values(), logits):
            place(tensor, "cuda:1")
        for _ in range(2):
            counted.names.clear()
            asked = Asked((target,))
            work(trace_of_run(view_of(model), tokens, asked, position, "frozen", cache, logits))
    return counted.names
