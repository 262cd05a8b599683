"""The residual stream in vocabulary space, against plain torch on Hugging Face's own weights."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

FAMILIES = ("llama", "gpt2", "gemma2", "cohere", "granite")
SCALES = (torch.tensor(2.5), "recomputed")


@dataclass
class Plain:
    """factor * (N(x) @ W.T), capped, in float64; written from Hugging Face's modules alone."""

    family: str
    hf: Any

    def __post_init__(self) -> None:
        config = self.hf.config
        self.W = self.hf.lm_head.weight.detach().double()  # [vocab, d_model]
        self.centres = self.family in ("gpt2", "cohere")
        norm = self.hf.transformer.ln_f if self.family == "gpt2" else self.hf.model.norm
        self.gain = norm.weight.detach().double() + (1 if self.family == "gemma2" else 0)
        self.bias = norm.bias.detach().double() if self.family == "gpt2" else torch.zeros_like(self.gain)
        eps_name = {"gpt2": "layer_norm_epsilon", "cohere": "layer_norm_eps"}.get(self.family, "rms_norm_eps")
        self.eps = getattr(config, eps_name)
        self.factor = {"cohere": lambda: config.logit_scale, "granite": lambda: 1 / config.logits_scaling}.get(
            self.family, lambda: 1.0
        )()
        self.cap = config.final_logit_softcapping if self.family == "gemma2" else None

    def linear(self, v: Tensor, scale: Any) -> Tensor:
        v = v.double()
        v = v - v.mean(-1, keepdim=True) if self.centres else v
        if isinstance(scale, str):
            scale = (v.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        elif isinstance(scale, Tensor):
            scale = scale.double()
        return v / scale * self.gain

    def bs_values(self, v: Tensor, scale: Any) -> Tensor:
        return self.linear(v, scale) @ self.W.T * self.factor

    def logits(self, x: Tensor, scale: Any) -> Tensor:
        logits = (self.linear(x, scale) + self.bias) @ self.W.T * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def log_probs(self, x: Tensor, scale: Any) -> Tensor:
        logits = self.logits(x, scale)
        return logits - logits.logsumexp(-1, keepdim=True)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request) -> tuple[Any, Plain]:
    model = zoo.bridge(request.param)
    return model, Plain(request.param, model.original_model)


def draw(*shape: int, seed: int = 0, length: float = 3.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * length


def close(ours: Tensor, theirs: Tensor, atol: float = 2e-5, rtol: float = 2e-6) -> None:
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours.double(), theirs, atol=atol, rtol=rtol)


@pytest.mark.parametrize("scale", SCALES, ids=["frozen", "recomputed"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_everything_is_what_plain_torch_says(pair, scale, shape):
    """Logits, log-probs, one word's log-prob and bs-values, for any leading shape and either scale."""
    model, plain = pair
    x = draw(*shape, 32)
    readout = tlsv.Readout(model, scale=scale)
    close(readout.logits(x), plain.logits(x, scale))
    close(readout.log_probs(x), plain.log_probs(x, scale))
    close(readout.bs_values(x), plain.bs_values(x, scale))
    for token in (0, 17, zoo.VOCAB - 1):
        close(readout.log_prob(x, token), plain.log_probs(x, scale)[..., token])


@pytest.mark.parametrize("scale_shape", [(2, 1), (1, 1), (1,), ()], ids=str)
def test_a_frozen_scale_of_a_batch(pair, scale_shape):
    """The scale may be [batch, 1], as cut from a cache, or anything that broadcasts to it."""
    model, plain = pair
    x, scale = draw(2, 32), draw(*scale_shape, seed=1).abs() + 0.5
    readout = tlsv.Readout(model, scale=scale)
    close(readout.log_probs(x), plain.log_probs(x, scale))
    close(readout.log_prob(x, 5), plain.log_probs(x, scale)[..., 5])
    close(readout.bs_values(x), plain.bs_values(x, scale))


@pytest.mark.parametrize("scale_shape", [(2, 3, 1), (1, 3, 1), (2, 1, 1)], ids=str)
def test_a_frozen_scale_of_batch_and_positions(pair, scale_shape):
    """The scale may be [batch, pos, 1], one value a position."""
    model, plain = pair
    x, scale = draw(2, 3, 32), draw(*scale_shape, seed=1).abs() + 0.5
    readout = tlsv.Readout(model, scale=scale)
    close(readout.log_probs(x), plain.log_probs(x, scale))
    close(readout.log_prob(x, 5), plain.log_probs(x, scale)[..., 5])


def test_a_frozen_scale_may_be_a_number(pair):
    """A plain float is a scale."""
    model, plain = pair
    x = draw(3, 32)
    close(tlsv.Readout(model, scale=1.5).log_probs(x), plain.log_probs(x, 1.5))


@pytest.mark.each_release
@pytest.mark.parametrize("compatibility", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_residual_reads_as_the_models_own_log_probs(family, compatibility, tokens):
    """Frozen at the run's own scale, or recomputed, the readout of the last residual stream is the model's output."""
    model = zoo.model(family, compatibility=compatibility)
    logits, cache = model.run_with_cache(tokens)
    own, last = logits.log_softmax(-1), cache["blocks.1.hook_resid_post"]
    for scale in (cache["ln_final.hook_scale"], "recomputed"):
        torch.testing.assert_close(tlsv.Readout(model, scale=scale).log_probs(last), own, atol=5e-5, rtol=0)


@pytest.mark.hooked
@pytest.mark.parametrize("variant", ["ln_gelu", "ln_pre_relu", "rms", "no_norm", "gemma2_like"])
def test_a_hooked_transformers_last_residual_reads_as_its_own_log_probs(variant, tokens):
    """The same for HookedTransformer, whose unembedding has a bias and whose final norm may be missing."""
    model = zoo.hooked(variant)
    logits, cache = model.run_with_cache(tokens)
    own, last = logits.log_softmax(-1), cache["blocks.1.hook_resid_post"]
    for scale in (1.0 if variant == "no_norm" else cache["ln_final.hook_scale"], "recomputed"):
        torch.testing.assert_close(tlsv.Readout(model, scale=scale).log_probs(last), own, atol=5e-5, rtol=0)


def test_log_probs_are_a_distribution_and_log_prob_is_its_entry(pair):
    """log_probs sum to one, and log_prob(x, t) is log_probs(x)[..., t]."""
    model, _ = pair
    x = draw(4, 32)
    for scale in SCALES:
        readout = tlsv.Readout(model, scale=scale)
        log_probs = readout.log_probs(x)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(4), atol=1e-5, rtol=0)
        entries = torch.stack([readout.log_prob(x, t) for t in range(zoo.VOCAB)], -1)
        torch.testing.assert_close(entries, log_probs, atol=1e-5, rtol=1e-6)


def test_bs_values_are_linear_while_the_scale_is_frozen(pair):
    """bs(a v + b w) = a bs(v) + b bs(w), so a sublayer's is the sum of its subvalues'; biases are left out."""
    model, _ = pair
    v, w = draw(5, 32), draw(5, 32, seed=1)
    readout = tlsv.Readout(model, scale=torch.tensor(2.0))
    combined = 2 * readout.bs_values(v) - 0.5 * readout.bs_values(w)
    torch.testing.assert_close(readout.bs_values(2 * v - 0.5 * w), combined, atol=1e-4, rtol=1e-5)
    assert (readout.bs_values(torch.zeros(32)) == 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "cohere", "granite"])
def test_differences_of_logits_are_bs_values(family):
    """Where there is no cap, logits(x + v) - logits(x) = bs(v): the readout is affine."""
    model = zoo.model(family)
    x, v = draw(5, 32), draw(5, 32, seed=1)
    readout = tlsv.Readout(model, scale=torch.tensor(2.0))
    difference = readout.logits(x + v) - readout.logits(x)
    torch.testing.assert_close(difference, readout.bs_values(v), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("length", [1e4, 1e-4])
@pytest.mark.parametrize("scale", SCALES, ids=["frozen", "recomputed"])
def test_extreme_vectors_stay_finite_and_right(pair, scale, length):
    """Nothing over- or underflows: vectors 10,000 times too long or too short read as in float64."""
    model, plain = pair
    x = draw(6, 32, length=length)
    readout = tlsv.Readout(model, scale=scale)
    expected, bs_values = plain.log_probs(x, scale), plain.bs_values(x, scale)
    atol = 2e-6 * float(bs_values.abs().max()) + 1e-5  # rounding grows with the numbers that are added up
    close(readout.log_probs(x), expected, atol)
    close(readout.log_prob(x, 11), expected[:, 11], atol)
    close(readout.bs_values(x), bs_values, atol)


@pytest.mark.parametrize("scale", SCALES, ids=["frozen", "recomputed"])
@pytest.mark.parametrize("length", [3.0, 1e4])
def test_the_block_size_changes_nothing(pair, scale, length, read_in_blocks):
    """Blocks are a matter of speed: 7 words and 3 vectors at a time give the same numbers as all at once."""
    model, _ = pair
    x, v = draw(32), draw(20, 32, seed=1, length=length)
    readout = tlsv.Readout(model, scale=scale)

    def everything() -> list[Tensor]:
        return [
            readout.logits(v),
            readout.log_prob(v, 9),
            readout.bs_values(v),
            tlsv.log_prob_increase(readout, x, v, 9),
            tlsv.prob_increase(readout, x, v, 9),
        ]

    atol = 2e-6 * float(readout.bs_values(v).abs().max()) + 1e-5  # blocks are added up in another order
    whole = everything()
    read_in_blocks(3, 7)
    for blocks, all_at_once in zip(everything(), whole, strict=True):
        torch.testing.assert_close(blocks, all_at_once, atol=atol, rtol=2e-6)


class OwnUnembedding(torch.nn.Module):
    """An unembedding of a class that nobody knows, with a bias that bs-values must leave out."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = torch.nn.Parameter(draw(linear.weight.shape[0], seed=5, length=1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", SCALES, ids=["frozen", "recomputed"])
def test_an_unembedding_that_is_no_linear_layer_is_called(family, scale):
    """A custom unembedding is called, never guessed at: its logits and increases are those of the module itself."""
    model = zoo.bridge(family)
    plain = Plain(family, model.original_model)
    own = OwnUnembedding(model.unembed.original_component)
    model.unembed._modules["_original_component"] = own
    model.original_model.lm_head = own
    assert model.unembed.original_component is own
    x, v = draw(32), draw(4, 32, seed=1)
    readout = tlsv.Readout(model, scale=scale)
    assert not readout.affine  # it may be anything

    def logits(y: Tensor) -> Tensor:
        whole = ((plain.linear(y, scale) + plain.bias) @ plain.W.T + own.bias.detach().double()) * plain.factor
        return whole if plain.cap is None else plain.cap * torch.tanh(whole / plain.cap)

    close(readout.logits(v), logits(v))
    close(readout.log_prob(v, 9), logits(v).log_softmax(-1)[:, 9])
    close(readout.bs_values(v), plain.bs_values(v, scale))
    expected = logits(x + v).log_softmax(-1)[:, 9] - logits(x).log_softmax(-1)[9]
    close(tlsv.log_prob_increase(readout, x, v, 9), expected)


@pytest.mark.each_release
def test_a_model_with_its_own_unembedding_can_be_traced(tokens):
    """The whole trace works where W_U cannot be read, and its increases are those of the linear layer it stands for."""
    plain, own = zoo.bridge("llama"), zoo.bridge("llama")
    module = OwnUnembedding(own.unembed.original_component)
    torch.nn.init.zeros_(module.bias)
    own.unembed._modules["_original_component"] = module
    own.original_model.lm_head = module
    for scale in ("frozen", "recomputed"):
        tables = [tlsv.trace(m, tokens, 9, scale=scale).layers() for m in (plain, own)]
        difference = tables[0].log_prob_increase - tables[1].log_prob_increase
        assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("scale", ["frozen", "", "lens", "Recomputed"])
def test_a_wrong_scale_is_refused(scale):
    """A scale is a tensor or 'recomputed'; any other word is refused, 'frozen' too, which says frozen at what."""
    with pytest.raises(ValueError, match="recomputed"):
        tlsv.Readout(zoo.model("llama"), scale=scale)


def test_the_readout_does_not_track_gradients(pair):
    """Readouts are for looking: no graph is kept, even of vectors that ask for one."""
    model, _ = pair
    x = draw(3, 32).requires_grad_()
    assert not tlsv.Readout(model, scale=2.0).log_probs(x).requires_grad
