"""A pickle read without running it: an interpreter of its opcodes that has nothing to call.

A pickle is a program, and what it names is run when it is read. Here a name is only a name: those that a checkpoint
has a use for are understood (tensors, tables, `argparse.Namespace`), those that do no harm are passed over, all others
are refused by name. Tensors are only described, so that their sizes are known before anything is made.
"""

import argparse
import pickletools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tl_subvalues.errors import UnsupportedModelError, shown, shown_value

TRUNCATED = "truncated, or no PyTorch checkpoint; fetch it again"
# A checkpoint of this model with its optimizer's state has some 30,000.
_MOST_STEPS = 500_000
_MOST_AXES = 8
_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER, _TABLE, _NAMESPACE = "torch._utils._rebuild_parameter", "collections.OrderedDict", "argparse.Namespace"
# Of no use here and passed over; the meters are training statistics in files before January 2020.
_IDLE = re.compile(
    r"fairseq\.meters\.(Average|Time|Stopwatch)Meter|collections\.(defaultdict|Counter)|_codecs\.encode"
    r"|torch\.(Size|device|(b?float|u?int|complex)\d+|bool)"
)
_CONSTANTS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}
_KEYS = (str, int, float, type(None))


@dataclass(frozen=True)
class Name:
    """Something that the pickle names, such as a class; never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers that lie elsewhere in the file under a key."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorAt:
    """A tensor's place in a storage, in numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        product = 1
        for length in self.size:
            product *= length
        return product


class Idle:
    """In place of an object that is not needed; whatever is put into it is dropped."""


class _DamagedError(ValueError):
    """A pickle that is none, or says what no checkpoint does."""


def read_pickle(source: Any, storages: dict[str, Storage] | None = None) -> Any:
    """What a pickle says, in terms of plain data, `argparse.Namespace`, `TensorAt` and `Idle`.

    Args:
        source: bytes, or a file that holds no more than there is (a memory map); it is left after the pickle.
        storages: is filled with all storages that it names, by their keys.

    Raises:
        UnsupportedModelError: if it names what a checkpoint has no need of.
        ValueError: if it is damaged, or no pickle.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in the text of a damaged file
            return _run(machine, source)
    except UnsupportedModelError:
        raise
    except _DamagedError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise _DamagedError(TRUNCATED) from error


def _run(machine: "_Machine", source: Any) -> Any:
    """Opcode by opcode up to the one that stops."""
    for step, (opcode, argument, _) in enumerate(pickletools.genops(source)):
        if step >= _MOST_STEPS:
            raise _DamagedError(f"its pickle has more than {_MOST_STEPS:,} steps")
        if opcode.name == "STOP":
            return machine.stack[-1]
        machine.step(opcode.name, argument)
    raise _DamagedError(TRUNCATED)


class _Machine:
    """The stack, the memo, and what each opcode does with them."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "FRAME": lambda _: None,
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "POP": lambda _: _drop(self.stack.pop()),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "EMPTY_SET": lambda _: self.stack.append(Idle()),
            "TUPLE": lambda _: self.stack.append(tuple(self._since_mark())),
            "TUPLE1": lambda _: self.stack.append(tuple(self._last(1))),
            "TUPLE2": lambda _: self.stack.append(tuple(self._last(2))),
            "TUPLE3": lambda _: self.stack.append(tuple(self._last(3))),
            "APPEND": lambda _: self._extend(self._last(1)),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "ADDITEMS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._update(self._last(2)),
            "SETITEMS": lambda _: self._update(self._since_mark()),
            "MEMOIZE": lambda _: self.memo.update({len(self.memo): self.stack[-1]}),
            "GLOBAL": lambda name: self.stack.append(_named(name.replace(" ", ".", 1))),
            "STACK_GLOBAL": lambda _: self.stack.append(_named(".".join(self._last(2)))),
            "INST": lambda name: _drop(_named(name.replace(" ", ".", 1))),
            "REDUCE": lambda _: self.stack.append(_called(*self._last(2))),
            "NEWOBJ": lambda _: self.stack.append(_made(*self._last(2))),
            "BUILD": lambda _: _filled(self.stack[-2], self._last(1)[0]),
            "BINPERSID": lambda _: self._stored(_storage(self._last(1)[0])),
        }
        for put, get in (("BINPUT", "BINGET"), ("LONG_BINPUT", "LONG_BINGET")):
            self._steps[put] = lambda index: self.memo.update({index: self.stack[-1]})
            self._steps[get] = lambda index: self.stack.append(self.memo[index])

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in _CONSTANTS:
            self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}.get(name, argument))
        elif name in self._steps:
            self._steps[name](argument)
        else:
            raise _DamagedError(f"its pickle uses {name}, which no checkpoint of this model has a use for")

    def _stored(self, storage: Storage) -> None:
        if self.storages.setdefault(storage.key, storage) != storage:
            raise _DamagedError(f"it holds two storages by one name, {shown_value(storage.key)}")
        self.stack.append(storage)

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count + (self.marks[-1] if self.marks else 0):
            raise _DamagedError(TRUNCATED)
        found = self.stack[-count:]
        del self.stack[-count:]
        return found

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Idle):
            self.stack[-1].extend(items)

    def _update(self, flat: list[Any]) -> None:
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if not isinstance(self.stack[-1], Idle):
            self.stack[-1].update(_with_plain_keys(pairs))


def _drop(_: Any) -> None:
    """Nothing."""


def _named(name: str) -> Name:
    """A name that a checkpoint may hold.

    Raises:
        UnsupportedModelError: for any other; some of them run programs.
    """
    if "omegaconf" in name:
        raise UnsupportedModelError(
            "its options are pickled omegaconf objects (fairseq from October 2020 to March 2021), which are not read; "
            "load it with a later fairseq and save it again, which makes them plain."
        )
    if name in (*_DTYPES, *_TENSORS, _PARAMETER, _TABLE, _NAMESPACE) or _IDLE.fullmatch(name):
        return Name(name)
    raise UnsupportedModelError(
        f"asks for {shown(name)}, which a checkpoint of this model has no need of; it was not loaded, for a pickle can "
        "run any program."
    )


def _called(what: Any, arguments: Any) -> Any:
    """In place of what(*arguments)."""
    if not isinstance(what, Name) or not isinstance(arguments, tuple):
        raise _DamagedError("its pickle calls what is no name")
    if what.name in _TENSORS:
        return _tensor(*arguments[:4])
    if what.name == _PARAMETER:
        return arguments[0]
    if what.name == _TABLE:
        return _with_plain_keys(arguments[0] if arguments else [])
    return Idle()


def _made(what: Any, arguments: Any) -> Any:
    """In place of a new object of a class."""
    if what == Name(_NAMESPACE):
        return argparse.Namespace()
    return _called(what, arguments)


def _filled(target: Any, state: Any) -> None:
    """In place of an object's way to take its state; a table's own attributes are not needed."""
    if not isinstance(target, argparse.Namespace):
        return
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise _DamagedError("its options are no table of names")
    vars(target).update(state)


def _with_plain_keys(pairs: Any) -> dict[Any, Any]:
    """A table; nested keys, of which only a program would think, can exhaust the stack when they are compared."""
    table = {}
    for key, value in pairs:
        if not isinstance(key, _KEYS) or (isinstance(key, int) and abs(key) >= 2**61 - 1):
            raise _DamagedError(f"it holds a table with the key {shown_value(key)}")
        table[key] = value
    return table


def _storage(identity: Any) -> Storage:
    """A storage out of ('storage', kind, key, device, numel), with None after it in older files."""
    kind, what, key, _, numel, *view = identity
    known = kind == "storage" and isinstance(what, Name) and what.name in _DTYPES and isinstance(key, str)
    if not known or not _is_count(numel) or view not in ([], [None]):
        raise _DamagedError(f"it holds a storage of another kind, {shown_value(identity)}")
    return Storage(key, _DTYPES[what.name], numel)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> TensorAt:
    """A tensor that lies within its storage, and has no more numbers than it."""
    whole = isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not whole or not len(size) == len(stride) <= _MOST_AXES or not all(map(_is_count, (offset, *size, *stride))):
        raise _DamagedError("it holds a tensor of another kind")
    tensor = TensorAt(storage, offset, size, stride)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if tensor.numel and (last >= storage.numel or tensor.numel > storage.numel):
        raise _DamagedError(f"it holds a tensor of shape {shown_value(size)} where there are {storage.numel} numbers")
    return tensor


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
