"""numerics/weight_rows: sums, products and lengths of rows of weights, however these lie in memory."""

import pytest
import torch

from tl_subvalues.numerics.weight_rows import (
    CONVERTED,
    WeightRows,
    inner_products,
    row_lengths,
    sum_and_lengths,
    weighted_sum,
)

pytestmark = pytest.mark.any_release


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n", [1, CONVERTED, 2 * CONVERTED + 3])
def test_rows_of_any_dtype_and_layout(dtype: torch.dtype, transposed: bool, n: int) -> None:
    """As in float64, to float32 rounding; lengths of rows that had to be converted are never too short."""
    rows = torch.randn(n, CONVERTED + 7, generator=torch.Generator().manual_seed(n)).to(dtype)
    rows = rows.T.contiguous().T if transposed else rows
    covectors = torch.randn(rows.shape[1], 3, generator=torch.Generator().manual_seed(0))
    exact = rows.double()
    found = inner_products(rows, covectors, 100)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact @ covectors.double(), rtol=1e-5, atol=1e-4)
    lengths = row_lengths(rows, torch.float32)
    slack = 1 + 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(lengths.double(), exact.norm(dim=1), rtol=slack - 1 + 1e-6, atol=0)
    if dtype != torch.float32:
        assert bool((lengths >= exact.norm(dim=1)).all())
    for parts in (torch.randn(2, n), torch.randn(n)):
        total, same = sum_and_lengths(parts, rows)
        torch.testing.assert_close(total.double(), parts.double() @ exact, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(same, lengths, rtol=1e-6, atol=0)
        torch.testing.assert_close(weighted_sum(parts, rows), total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_lengths_are_those_of_the_last_sum(dtype: torch.dtype) -> None:
    """Measured with it, or when they are asked for first; of rows that were written to since, with the next."""
    rows = torch.randn(9, 40).to(dtype).T.contiguous().T
    weights = torch.randn(9, dtype=torch.promote_types(dtype, torch.float32))
    first, second = WeightRows(rows), WeightRows(rows)
    first.sum(weights)
    assert first.lengths.dtype == weights.dtype
    torch.testing.assert_close(second.lengths, first.lengths, rtol=1e-6, atol=0)
    assert second.lengths is second.lengths
    before = first.lengths
    rows.data.mul_(2.0)
    assert first.lengths is before
    first.sum(weights)
    torch.testing.assert_close(first.lengths, 2 * before, rtol=1e-6, atol=0)


def test_no_rows() -> None:
    """A mixture's idle expert has none."""
    for rows in (torch.empty(0, 5), torch.empty(5, 0).T, torch.empty(5, 0, dtype=torch.bfloat16).T):
        total, lengths = sum_and_lengths(torch.empty(2, 0), rows)
        assert (total.shape, total.abs().sum(), lengths.shape) == ((2, 5), 0, (0,))
