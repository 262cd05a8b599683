"""Importance of subvalues, against explicit log-softmaxes in float64."""

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

TOKEN = 9
FAMILIES = ("llama", "gemma2", "granite")


def draw(*shape: int, seed: int = 0, length: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * length


@pytest.fixture(scope="module")
def models() -> dict:
    return {family: zoo.model(family) for family in FAMILIES}


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """As users have it: annotations are not enforced, so that what speaks is the package's own check."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def log_prob_of(model, family: str, scale: Tensor | str) -> Callable[[Tensor], Tensor]:
    """log p(TOKEN | x) in float64: RMS norm, unembedding, factor, cap, log-softmax, written out."""
    hf = model.original_model
    gain = hf.model.norm.weight.detach().double() + (1 if family == "gemma2" else 0)
    W = hf.lm_head.weight.detach().double()
    factor = 1 / hf.config.logits_scaling if family == "granite" else 1.0
    cap = hf.config.final_logit_softcapping if family == "gemma2" else None

    def log_prob(x: Tensor) -> Tensor:
        x = x.double()
        own = (x.pow(2).mean(-1, keepdim=True) + hf.config.rms_norm_eps).sqrt()
        divisor = own if isinstance(scale, str) else scale.double()
        logits = (x / divisor * gain) @ W.T * factor
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return torch.log_softmax(logits, -1)[..., TOKEN]

    return log_prob


def check(ours: tuple[Tensor, Tensor], log_prob: Callable, x: Tensor, v: Tensor, atol: float = 1e-5) -> None:
    before, after = log_prob(x), log_prob(x.double() + v.double())
    for got, expected in zip(ours, (after - before, after.exp() - before.exp()), strict=True):
        assert got.shape == v.shape[:-1]
        torch.testing.assert_close(got.double(), expected, atol=atol, rtol=2e-5)


def both(readout: tlsv.Readout, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return tlsv.log_prob_increase(readout, x, v, TOKEN), tlsv.prob_increase(readout, x, v, TOKEN)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [torch.tensor(1.7), "recomputed"], ids=["frozen", "recomputed"])
@pytest.mark.parametrize("rest", [(), (2,), (2, 3)], ids=["[c,d]", "[c,b,d]", "[c,b,p,d]"])
def test_increases_are_differences_of_log_softmax(models, family, scale, rest):
    """Component axis first, any axes behind it; plain, soft-capped and scaled logits; either scale."""
    x, v = draw(*rest, 32), draw(6, *rest, 32, seed=1)
    readout = tlsv.Readout(models[family], scale=scale)
    check(both(readout, x, v), log_prob_of(models[family], family, scale), x, v)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("rest", "scale_shape"),
    [((2,), (2, 1)), ((2,), (1, 1)), ((2, 3), (2, 3, 1)), ((2, 3), (2, 1, 1)), ((2, 3), (1, 3, 1)), ((2, 3), (3, 1))],
    ids=str,
)
def test_each_row_of_a_batch_has_its_own_frozen_scale(models, family, rest, scale_shape):
    """A frozen scale [batch, 1] or [batch, pos, 1] is used row by row, and broadcasts like any tensor."""
    x, v, scale = draw(*rest, 32), draw(5, *rest, 32, seed=1), draw(*scale_shape, seed=2).abs() + 0.5
    readout = tlsv.Readout(models[family], scale=scale)
    check(both(readout, x, v), log_prob_of(models[family], family, scale), x, v)


@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
def test_increases_on_a_real_cache(models, scale, tokens):
    """A layer's neurons on a batch of two prompts, read at the scale that the run had at its last position."""
    model, batch = models["llama"], torch.cat([tokens, tokens.flip(1)])
    _, cache = model.run_with_cache(batch)
    x, v = cache["blocks.1.hook_resid_mid"][:, -1], tlsv.ffn_subvalues(model, cache, 1)
    chosen = cache["ln_final.hook_scale"][:, -1] if scale == "frozen" else scale
    check(both(tlsv.Readout(model, scale=chosen), x, v), log_prob_of(model, "llama", chosen), x, v)


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_tiny_increases_keep_their_digits(models, family):
    """Small increases are right to 1e-7 nats in float32, where differences of log-probs are not."""
    x, v = draw(32, length=3.0), draw(200, 32, seed=1, length=1.0) * 1e-4
    model, scale = models[family], torch.tensor(2.0)
    log_prob = log_prob_of(model, family, scale)
    expected = log_prob(x.double() + v.double()) - log_prob(x)
    readout = tlsv.Readout(model, scale=scale)
    increase = tlsv.log_prob_increase(readout, x, v, TOKEN).double()
    assert expected.abs().max() < 1e-3
    assert (increase - expected).abs().max() < 1e-7
    subtracted = readout.log_prob(x + v, TOKEN).double() - readout.log_prob(x, TOKEN).double()
    assert (subtracted - expected).abs().max() > 2e-7  # what is promised is more than subtraction gives


@pytest.mark.parametrize("length", [1e4, 3e2])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [torch.tensor(1.7), "recomputed"], ids=["frozen", "recomputed"])
def test_huge_subvalues_stay_finite_and_right(models, family, scale, length):
    """Sums of exponentials far beyond float32 are done again around their maximum."""
    x, v = draw(32), draw(20, 32, seed=1, length=length)
    readout = tlsv.Readout(models[family], scale=scale)
    increase, probability = both(readout, x, v)
    assert torch.isfinite(increase).all()
    assert torch.isfinite(probability).all()
    frozen = not isinstance(scale, str)
    check((increase, probability), log_prob_of(models[family], family, scale), x, v, 1e-6 * length if frozen else 2e-5)


def test_a_zero_subvalue_changes_nothing(models):
    """Adding nothing raises nothing, to the last digit or nearly so."""
    for family, model in models.items():
        for scale in (torch.tensor(1.7), "recomputed"):
            increase, probability = both(tlsv.Readout(model, scale=scale), draw(32), torch.zeros(2, 32))
            assert increase.abs().max() < 2e-6, family
            assert probability.abs().max() < 2e-6, family


def test_float64_models_are_scored_in_float64(tokens):
    """A float64 model's increases have float64's digits."""
    model = zoo.bridge("llama", dtype=torch.float64)
    x, v, scale = draw(32).double(), draw(6, 32, seed=1).double(), torch.tensor(1.7)
    expected = log_prob_of(model, "llama", scale)(x + v) - log_prob_of(model, "llama", scale)(x)
    increase = tlsv.log_prob_increase(tlsv.Readout(model, scale=scale), x, v, TOKEN)
    torch.testing.assert_close(increase, expected, atol=1e-6, rtol=0)
    assert increase.dtype == torch.float64


@pytest.mark.parametrize("function", [tlsv.log_prob_increase, tlsv.prob_increase])
@pytest.mark.parametrize(
    ("residual", "subvalues"),
    [((32,), (4, 2, 32)), ((2, 32), (4, 32)), ((2, 32), (4, 3, 32)), ((2, 3, 32), (4, 2, 32))],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_go_together_are_refused(models, function, residual, subvalues):
    """The error shows both shapes; nothing is broadcast behind the caller's back."""
    readout = tlsv.Readout(models["llama"], scale=1.0)
    with pytest.raises(ValueError, match="component axis") as caught:
        function(readout, torch.zeros(residual), torch.zeros(subvalues), TOKEN)
    assert str(residual) in str(caught.value)
    assert str(subvalues) in str(caught.value)


@pytest.mark.parametrize("function", [tlsv.log_prob_increase, tlsv.prob_increase])
@pytest.mark.parametrize("token", [-1, zoo.VOCAB, 10**6])
def test_a_token_outside_the_vocabulary_is_refused(models, function, token):
    """The error names the id and the range; negative ids do not count from the end."""
    readout = tlsv.Readout(models["llama"], scale=1.0)
    with pytest.raises(ValueError, match=f"{token} is outside the vocabulary.* 0 to {zoo.VOCAB - 1}"):
        function(readout, torch.zeros(32), torch.zeros(4, 32), token)
