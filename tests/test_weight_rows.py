"""numerics/weight_rows: sums, products and lengths of rows of weights, however these lie in memory."""

import pytest
import torch

from tl_subvalues.numerics import weight_rows
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
def test_lengths_are_measured_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first sum of rows, or when they are asked for; in float64 for float64 rows."""
    rows = torch.randn(9, 40).to(dtype).T.contiguous().T
    weights = torch.randn(9, dtype=torch.promote_types(dtype, torch.float32))
    first, second = WeightRows(rows), WeightRows(rows)
    total = first.sum(weights)
    monkeypatch.setattr(weight_rows, "row_lengths", None)
    assert first.lengths.dtype == weights.dtype
    torch.testing.assert_close(first.sum(weights), total)
    monkeypatch.undo()
    torch.testing.assert_close(second.lengths, first.lengths, rtol=1e-6, atol=0)
    assert second.lengths is second.lengths
