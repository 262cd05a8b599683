"""The k largest of numbers that come in blocks, against a sort of all of them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_subvalues.numerics import extremes as module
from tl_subvalues.numerics.extremes import extremes

pytestmark = pytest.mark.any_release


def check(numbers: torch.Tensor, sizes: list[int], k: int) -> None:
    """Both sides, by value; and each column's number is the one that is told."""
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    blocks = [(slice(a, b), numbers[:, a:b]) for a, b in itertools.pairwise(starts)]
    found = extremes(iter(blocks), k, [True, False])
    for largest, (values, columns) in found.items():
        expected = numbers.sort(1, descending=largest).values[:, :k]
        assert torch.equal(values, expected)
        assert torch.equal(numbers.gather(1, columns), values)
        assert all(len(row.unique()) == len(row) for row in columns)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 1500), min_size=1, max_size=4),
    k=st.integers(1, 12),
    kinds=st.integers(1, 400),
)
def test_any_blocks(seed: int, n: int, sizes: list[int], k: int, kinds: int) -> None:
    """Blocks of any width, numbers of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-kinds, kinds + 1, (n, sum(sizes)), generator=generator).float()
    check(numbers, sizes, k)


@pytest.mark.parametrize("order", ["rising", "falling", "equal"])
def test_numbers_in_order(order: str) -> None:
    """Where each block holds all, or none, of the k largest."""
    numbers = torch.arange(6000.0).expand(3, -1)
    numbers = {"rising": numbers, "falling": -numbers, "equal": numbers * 0}[order].contiguous()
    check(numbers, [2000, 2000, 2000], 7)
    check(numbers, [6000], 7)


def test_a_look_at_few_is_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every number is sorted: topk sees a small share of them (and NaN, which nothing beats, all)."""
    numbers = torch.randn(4, 64 * 500, generator=torch.Generator().manual_seed(0))
    few = module._few(numbers, 5, None, True)
    assert few is not None
    assert few[0].shape[1] < 200
    numbers[2, 17] = torch.nan
    values, columns = extremes([(slice(0, numbers.shape[1]), numbers)], 5, [True])[True]
    expected = numbers.topk(5)
    assert torch.equal(columns[[0, 1, 3]], expected.indices[[0, 1, 3]])
    assert torch.equal(values[[0, 1, 3]], expected.values[[0, 1, 3]])
