"""How annotations are checked in tests: each once by beartype, where they hold shapes in a scope of jaxtyping's.

jaxtyping's pytest option has its import hook decorate every function of the package. Its own decorator binds arguments
and checks them twice, for its messages' sake, and has shapes in view where there are none: half the time of the tests.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype.roar import BeartypeCallHintViolation

_SHAPES = jaxtyping.jaxtyped
_NO_SCOPE = contextlib.nullcontext()


def check_shapes_where_there_are() -> None:
    """From now on, of what is imported, only what has shapes is checked in a scope of shapes."""
    jaxtyping.jaxtyped = checked


def checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """A decorator, as `jaxtyping.jaxtyped`."""

    def decorate(what: Any) -> Any:
        if inspect.isclass(what):
            if not dataclasses.is_dataclass(what) or has_shapes(what.__init__):
                return _SHAPES(what, typechecker=typechecker)
            what.__init__ = _typed(what.__init__, typechecker)
            return what
        # By itself beartype looks at a generator when that is asked, and must find what an annotation in quotes names.
        by_itself = inspect.isfunction(what) and not _in_quotes(what)
        by_itself &= not (inspect.isgeneratorfunction(what) and has_shapes(what))
        return _typed(what, typechecker) if by_itself else _SHAPES(what, typechecker=typechecker)

    return decorate


def has_shapes(function: Any) -> bool:
    """Whether an annotation of a function holds a shape; one in quotes may."""
    return any(map(_is_shape, getattr(function, "__annotations__", {}).values()))


def _in_quotes(function: Any) -> bool:
    return any(map(_is_quoted, getattr(function, "__annotations__", {}).values()))


def _is_quoted(annotation: Any) -> bool:
    parts = annotation if isinstance(annotation, (list, tuple)) else get_args(annotation)
    return isinstance(annotation, str) or any(map(_is_quoted, parts))


def _is_shape(annotation: Any) -> bool:
    if isinstance(annotation, (list, tuple)):
        return any(map(_is_shape, annotation))
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_is_shape, get_args(annotation)))


def _typed(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    typed, shapes = typechecker(function), has_shapes(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        with _SHAPES("context") if shapes else _NO_SCOPE:  # a name of an axis is one number within a scope
            try:
                return typed(*args, **kwargs)
            except BeartypeCallHintViolation as error:
                raise jaxtyping.TypeCheckError(str(error)) from error

    return run
