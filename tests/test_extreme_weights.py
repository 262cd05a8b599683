"""Weights and vocabularies at which plain float32 says something else: huge columns or increases, many words."""

import numpy as np
import pytest
import torch
from helpers import zoo
from helpers.bounds import both_bounds

import tl_subvalues as tlsv
from tl_subvalues.numerics.softmax import Columns, Softmax
from tl_subvalues.readout.measures import AllBut

pytestmark = pytest.mark.any_release


def test_many_words_add_up_to_one() -> None:
    """Over 262,144 words, float32 sums are off by 1e-4; the distributions that increases start from are not."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(8, 262_144, generator=generator)
    softmax = Softmax(Columns((W,)), factor=1.0, soft_cap=None, dtype=torch.float32, device=torch.device("cpu"))
    x = torch.randn(3, 8, generator=generator)
    under = AllBut(softmax).distributions(softmax.logits(x))
    exact = (x.double() @ W.double()).log_softmax(-1)
    assert (under.p.double().log() - exact).abs().max() < 4e-6  # logits near 30 have some 2e-6 in their last place
    assert (under.p.double().sum(-1) - 1).abs().max() < 1e-7
    lin = torch.zeros(1, 8)
    lin[0, 0] = 2.0
    found = softmax.log_mean_exp(lin, under, torch.zeros(1, dtype=torch.long)).double()
    assert float((found - (exact[:1] + lin.double() @ W.double()).logsumexp(-1)).abs()) < 2e-6
    mean = softmax.mean_columns(under.p).double()
    assert (mean - exact.exp() @ W.double().T).abs().max() < 1e-6


def test_a_huge_part_that_all_columns_share_and_the_gain_removes(tokens: torch.Tensor) -> None:
    """One row of 3e6 in the unembedding where the final gain is 0: the lowest k and their bounds are still right."""
    model = zoo.bridge("llama")
    with torch.no_grad():
        model.unembed.original_component.weight.mul_(0.2)
        model.unembed.original_component.weight[:, 5] = 3e6
        model.ln_final.original_component.weight[5] = 0.0
    trace = tlsv.trace(model, tokens, 5)
    for table in ("ffn_neurons", "attn_neurons"):
        swept = getattr(trace, table)(top=None, largest=False)
        found = getattr(trace, table)(top=5, largest=False)
        assert found["label"].tolist() == swept["label"].tolist()[:5]
    candidates = trace.candidates("ffn_neuron")
    increase = candidates.evaluate(torch.arange(len(candidates)))
    assert (increase >= both_bounds(candidates)[1]).all()


@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
def test_increases_of_hundreds_of_nats(scale: str, tokens: torch.Tensor) -> None:
    """Readout weights × 300: probabilities stay between 0 and 1, their increases between −1 and 1, no NaN."""
    model = zoo.bridge("llama")
    with torch.no_grad():
        model.unembed.original_component.weight.mul_(300.0)
    for target in (5, 9, int(model(tokens)[0, -1].argmax())):
        trace = tlsv.trace(model, tokens, target, scale=scale)
        for table in (trace.layers(), trace.heads(), trace.ffn_neurons(top=None), trace.attn_neurons(top=None)):
            increase = table["prob_increase"].to_numpy()
            assert np.isfinite(increase).all()
            assert (np.abs(increase) <= 1.0).all()
        assert trace.layers()["log_prob_increase"].abs().max() > 88
        curve = trace.curve(trace.layers())
        assert curve["prob"].between(0.0, 1.0).all()
        assert (curve["log_prob"] <= 0.0).all()


def test_probability_increases_of_the_functional_core_are_finite() -> None:
    """From next to nothing to near certainty: an increase of 200 nats is a probability of 1."""
    model = zoo.bridge("llama")
    readout = tlsv.Readout(model, scale=1.0)
    W = model.unembed.original_component.weight.detach()
    towards = W[7] - W.mean(0)
    x = -300.0 * towards / towards.norm() ** 2
    v = 900.0 * towards / towards.norm() ** 2
    found = tlsv.prob_increase(readout, x, v[None], 7)
    assert torch.isfinite(found).all()
    before, after = (readout.log_prob(y, 7).double().exp() for y in (x, x + v))
    assert float(found[0]) == pytest.approx(float(after - before), abs=1e-5)
