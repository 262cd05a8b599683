"""Norms as plain tensors: their values, their linear part, its transpose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_subvalues.numerics.norms import Norm, Passage

pytestmark = pytest.mark.any_release

KINDS = ("layer", "rms")
shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)
widths = st.integers(2, 9)
seeds = st.integers(0, 10_000)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def a_norm(kind: str, width: int, seed: int, gain: bool = True, bias: bool = True) -> Norm:
    return Norm(kind, draw(seed, width) + 1 if gain else None, draw(seed + 1, width) if bias else None, 1e-5)


@settings(deadline=None, max_examples=40)
@given(rest=shapes, width=widths, seed=seeds, gain=st.booleans(), bias=st.booleans())
def test_layer_norm_is_torchs(rest, width, seed, gain, bias):
    """A layer norm called on x is torch's own layer norm, with and without gain and bias."""
    norm, x = a_norm("layer", width, seed, gain, bias), draw(seed + 2, *rest, width) * 3
    expected = torch.nn.functional.layer_norm(x, (width,), norm.gain, norm.bias, norm.eps)
    torch.testing.assert_close(norm(x), expected)


@settings(deadline=None, max_examples=40)
@given(rest=shapes, width=widths, seed=seeds, gain=st.booleans())
def test_rms_norm_divides_by_the_root_mean_square(rest, width, seed, gain):
    """An RMS norm called on x is x / sqrt(mean(x²) + eps) times the gain, nothing centred."""
    norm, x = a_norm("rms", width, seed, gain, bias=False), draw(seed + 2, *rest, width) * 3
    expected = x / ((x * x).sum(-1, keepdim=True) / width + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected * norm.gain if gain else expected)


def test_a_layer_norm_by_hand():
    """(1, 3) has mean 2, deviation 1: it becomes (-1, 1), then gain and bias."""
    norm = Norm("layer", torch.tensor([2.0, 3.0]), torch.tensor([10.0, 20.0]), 0.0)
    x = torch.tensor([1.0, 3.0])
    assert norm.centre(x).tolist() == [-1.0, 1.0]
    assert norm.scale(x).tolist() == [1.0]
    assert norm(x).tolist() == [8.0, 23.0]
    assert norm.linear(x, torch.tensor([2.0])).tolist() == [-1.0, 1.5]
    assert norm.transposed(torch.tensor([1.0, 1.0]), torch.tensor([2.0])).tolist() == [-0.25, 0.25]


def test_an_rms_norm_by_hand():
    """(3, 4, 5) with eps 83 - 50/3 has scale sqrt(83); the gain multiplies, nothing is centred."""
    norm = Norm("rms", torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), None, 83 - 50 / 3)
    x = torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)
    root = 83**0.5
    torch.testing.assert_close(norm.scale(x), torch.tensor([root], dtype=torch.float64))
    torch.testing.assert_close(norm(x), torch.tensor([3 / root, 8 / root, -5 / root], dtype=torch.float64))
    assert norm.centre(x) is x


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(KINDS), rest=shapes, width=widths, seed=seeds, bias=st.booleans())
def test_affine_is_linear_plus_bias(kind, rest, width, seed, bias):
    """With the scale frozen, the norm is its linear part plus its bias, and its linear part is linear."""
    norm = a_norm(kind, width, seed, bias=bias)
    x, y, scale = draw(seed + 2, *rest, width), draw(seed + 3, *rest, width), draw(seed + 4, *rest, 1).abs() + 0.5
    linear = norm.linear(x, scale)
    torch.testing.assert_close(norm.affine(x, scale), linear if norm.bias is None else linear + norm.bias)
    torch.testing.assert_close(norm.linear(2 * x - 3 * y, scale), 2 * linear - 3 * norm.linear(y, scale))
    torch.testing.assert_close(norm.affine(x, norm.scale(x)), norm(x))


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(KINDS), rest=shapes, width=widths, seed=seeds, gain=st.booleans())
def test_a_norms_transposed_is_its_adjoint(kind, rest, width, seed, gain):
    """<c, linear(v)> = <transposed(c), v> for any covector c, vector v and scale."""
    norm = a_norm(kind, width, seed, gain=gain)
    c, v, scale = draw(seed + 2, *rest, width), draw(seed + 3, *rest, width), draw(seed + 4, *rest, 1).abs() + 0.5
    torch.testing.assert_close((c * norm.linear(v, scale)).sum(-1), (norm.transposed(c, scale) * v).sum(-1))


@pytest.mark.parametrize("multiplier", [1.0, 0.4])
@pytest.mark.parametrize("kind", [None, *KINDS])
@settings(deadline=None, max_examples=20)
@given(rest=shapes, width=widths, seed=seeds)
def test_a_passages_transposed_is_its_adjoint(kind, multiplier, rest, width, seed):
    """<c, carry(v)> = <transposed(c), v>, whatever stands between sublayer and residual stream."""
    passage = Passage(None if kind is None else a_norm(kind, width, seed), multiplier)
    scale = None if kind is None else draw(seed + 4, *rest, 1).abs() + 0.5
    c, v = draw(seed + 2, *rest, width), draw(seed + 3, *rest, width)
    torch.testing.assert_close((c * passage.carry(v, scale)).sum(-1), (passage.transposed(c, scale) * v).sum(-1))


@pytest.mark.parametrize("multiplier", [1.0, 0.4])
@pytest.mark.parametrize("norm_bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(n_parts=st.integers(1, 6), rest=shapes, width=widths, seed=seeds)
def test_carried_parts_and_bias_add_up_to_the_carried_whole(kind, norm_bias, multiplier, n_parts, rest, width, seed):
    """Σ carry(part) + carry_bias(bias) is what the model adds: multiplier * norm(Σ parts + bias)."""
    norm = a_norm(kind, width, seed, bias=norm_bias)
    passage, parts, bias = Passage(norm, multiplier), draw(seed + 2, n_parts, *rest, width), draw(seed + 3, width)
    whole = parts.sum(0) + bias
    scale = norm.scale(whole)
    carried = passage.carry(parts, scale).sum(0) + passage.carry_bias(bias.expand_as(whole), scale)
    torch.testing.assert_close(carried, multiplier * norm(whole))


def test_a_passage_by_hand():
    """A multiplier multiplies vectors and biases; the post-norm's own bias goes with the sublayer's."""
    v, b = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0])
    plain, halved = Passage(), Passage(multiplier=0.5)
    assert plain.carry(v, None).tolist() == [2.0, 4.0]
    assert plain.carry_bias(b, None).tolist() == [1.0, 1.0]
    assert halved.carry(v, None).tolist() == [1.0, 2.0]
    assert halved.carry_bias(b, None).tolist() == [0.5, 0.5]
    normed = Passage(Norm("rms", torch.tensor([1.0, 3.0]), torch.tensor([10.0, 20.0]), 0.0), 0.5)
    scale = torch.tensor([2.0])
    assert normed.carry(v, scale).tolist() == [0.5, 3.0]
    assert normed.carry_bias(b, scale).tolist() == [5.25, 10.75]
    assert normed.transposed(torch.tensor([1.0, 1.0]), scale).tolist() == [0.25, 0.75]


def test_a_float32_norm_serves_float64_vectors():
    """The vectors' dtype is kept, whatever the parameters are stored in."""
    norm = Norm("layer", torch.ones(3, dtype=torch.float32), torch.zeros(3, dtype=torch.bfloat16), 1e-5)
    assert norm(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64
