"""One softmax, read in blocks: a vector's numbers are its own, to the bit, and those of plain float64."""

import pytest
import torch

from tl_subvalues.numerics.distributions import Distributions, distributions_of
from tl_subvalues.numerics.softmax import VECTOR_BLOCK, VOCAB_BLOCK, Columns, Softmax

pytestmark = pytest.mark.any_release

WIDTH, CLASSES, SITES = 24, VOCAB_BLOCK + 700, 5  # two blocks of classes, one of them not full


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["rows", "columns", "side_by_side"])
def weights(request: pytest.FixtureRequest) -> tuple[torch.Tensor, ...]:
    """Stored row after row (HookedTransformer), column after column (a linear layer's), or in two matrices."""
    W = draw(WIDTH, CLASSES, seed=0)
    if request.param == "side_by_side":
        return W[:, :900].clone(), W[:, 900:].clone()
    return (W if request.param == "rows" else W.T.contiguous().T,)


def made(weights: tuple[torch.Tensor, ...], dtype: torch.dtype) -> tuple[Softmax, Distributions]:
    """The softmax, and distributions at five sites."""
    columns = Columns(tuple(W.to(dtype) for W in weights))
    softmax = Softmax(columns, factor=1.5, soft_cap=None, dtype=dtype, device=torch.device("cpu"))
    return softmax, distributions_of(scores().to(dtype))


def scores() -> torch.Tensor:
    """Logits at five sites."""
    return 3 * draw(SITES, CLASSES, seed=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_vectors_bits_do_not_depend_on_its_company(weights, dtype):
    """Alone, among vectors of its own site, among those of all sites, first or last: the same bits."""
    softmax, under = made(weights, dtype)
    n = 2 * VECTOR_BLOCK + 11
    lin, site = 0.3 * draw(n, WIDTH, seed=2).to(dtype), torch.arange(n) % SITES
    together = softmax.log_mean_exp(lin, under, site)
    assert len(together.unique()) == n
    by_site = torch.argsort(site, stable=True)
    assert torch.equal(softmax.log_mean_exp(lin[by_site], under, site[by_site]), together[by_site])
    backwards = torch.arange(n - 1, -1, -1)
    assert torch.equal(softmax.log_mean_exp(lin[backwards], under, site[backwards]), together[backwards])
    for s in range(SITES):
        mine = site == s
        assert torch.equal(softmax.log_mean_exp(lin[mine], under, site[mine]), together[mine])
    assert torch.equal(
        softmax.log_mean_exp(lin[: 2 * VECTOR_BLOCK].T.contiguous().T, under, site[: 2 * VECTOR_BLOCK]),
        together[: 2 * VECTOR_BLOCK],
    )
    logits = scores().to(dtype)
    logits[3, 5] = -110.0  # of another site: what it does to that site's vectors is none of the others' business
    extreme = distributions_of(logits)
    assert extreme.vanishes(torch.arange(SITES)).tolist() == [False, False, False, True, False]
    others = site != 3
    assert torch.equal(softmax.log_mean_exp(lin, extreme, site)[others], together[others])
    for i in (0, 7, VECTOR_BLOCK, n - 1):
        assert torch.equal(softmax.log_mean_exp(lin[i : i + 1], under, site[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("length", [1e-3, 0.3, 10.0])
def test_log_mean_exp_is_what_plain_float64_says(weights, dtype, tolerance, length):
    """Each vector under its own site's distribution, small increases to their last digits, and large ones."""
    softmax, under = made(weights, dtype)
    lin, site = length * draw(VECTOR_BLOCK + 3, WIDTH, seed=3), torch.arange(VECTOR_BLOCK + 3) % SITES
    growth = (lin @ torch.cat(weights, 1) * 1.5).expm1()  # log Σ exp itself would lose a small increase's last digits
    expected = (growth * scores().softmax(-1)[site]).sum(-1).log1p()
    found = softmax.log_mean_exp(lin.to(dtype), under, site).double()
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def test_logits_of_many_shapes(weights):
    """Classes in order, whatever the matrices and the leading axes."""
    softmax, _ = made(weights, torch.float64)
    for shape in ((WIDTH,), (0, WIDTH), (3, WIDTH), (2, 3, WIDTH)):
        x = draw(*shape, seed=4)
        torch.testing.assert_close(softmax.bs_values(x), x @ torch.cat(weights, 1) * 1.5, atol=1e-12, rtol=1e-12)
