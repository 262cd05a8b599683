"""How annotations are checked in tests: shapes by jaxtyping, all else by beartype alone.

jaxtyping's pytest option has its import hook decorate every function of the package. Most have no shapes, and what is
done for shapes is half the time of the tests.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype.roar import BeartypeCallHintViolation

_SHAPES = jaxtyping.jaxtyped


def check_shapes_where_there_are() -> None:
    """From now on, of what is imported, only what has shapes is checked by jaxtyping."""
    jaxtyping.jaxtyped = checked


def checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """A decorator, as `jaxtyping.jaxtyped`."""

    def decorate(what: Any) -> Any:
        if inspect.isclass(what):
            if not dataclasses.is_dataclass(what) or has_shapes(what.__init__):
                return _SHAPES(what, typechecker=typechecker)
            what.__init__ = _types_only(what.__init__, typechecker)
            return what
        if not inspect.isfunction(what) or has_shapes(what):
            return _SHAPES(what, typechecker=typechecker)
        return _types_only(what, typechecker)

    return decorate


def has_shapes(function: Any) -> bool:
    """Whether an annotation of a function holds a shape; one in quotes may."""
    return any(map(_is_shape, getattr(function, "__annotations__", {}).values()))


def _is_shape(annotation: Any) -> bool:
    if isinstance(annotation, (list, tuple)):
        return any(map(_is_shape, annotation))
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_is_shape, get_args(annotation)))


def _types_only(function: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    typed = typechecker(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        try:
            return typed(*args, **kwargs)
        except BeartypeCallHintViolation as error:
            raise jaxtyping.TypeCheckError(str(error)) from error

    return run
