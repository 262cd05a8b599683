"""Annotations are checked in tests: shapes and types, of functions, methods and dataclasses."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from helpers.checked import checked, has_shapes
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.labels import parse_label
from tl_subvalues.numerics import blocks
from tl_subvalues.numerics.norms import Norm

pytestmark = pytest.mark.any_release

check = checked(typechecker=beartype)


def test_shapes_and_types_are_told_apart() -> None:
    """Wherever a shape stands in an annotation."""

    def of(annotation: object) -> bool:
        def function(x: object) -> None: ...

        function.__annotations__["x"] = annotation
        return has_shapes(function)

    shape = Float[Tensor, "a b"]
    assert all(map(of, (shape, shape | None, list[shape], dict[str, tuple[shape, int]], "Float[Tensor, 'a']")))
    assert not any(map(of, (Tensor, int | None, list[str], dict[str, tuple[int, ...]])))


def test_what_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error for both kinds; none where checks are off, as users have it."""

    def added(x: Float[Tensor, " a"], y: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        return x + y

    def counted(n: int) -> str:
        answer: Any = n if n > 9 else str(n)
        return answer

    @dataclass
    class Named:
        name: str

    def each(x: Float[Tensor, " a"], y: Float[Tensor, " a"]) -> Iterator[Float[Tensor, " a"]]:
        yield x + y

    long, short = torch.zeros(3), torch.zeros(1)
    wrong = [
        lambda: check(added)(long, short),
        lambda: check(each)(long, short),
        lambda: check(counted)("two"),
        lambda: check(counted)(10),
        lambda: check(Named)(3),
    ]
    assert check(counted)(2) == "2"
    assert check(added)(long, long).shape == (3,)
    for call in wrong:
        with pytest.raises(jaxtyping.TypeCheckError):
            call()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert check(counted)(10) == 10
    assert check(added)(long, short).shape == (3,)


@pytest.mark.slow  # as `make test-fast` leaves the package unchecked
def test_the_package_is_checked() -> None:
    """Functions with and without shapes, methods, and what takes any type in its own checks."""
    with pytest.raises(jaxtyping.TypeCheckError):
        blocks.padded(torch.zeros(3), "two")
    with pytest.raises(jaxtyping.TypeCheckError):
        Norm("rms", torch.zeros(3, 3, 3), None, 1e-5).linear(torch.zeros(2), torch.zeros(1))
    with pytest.raises(jaxtyping.TypeCheckError):
        parse_label(7)
