"""Baevski & Auli's model against fairseq's own outputs, and against a second implementation where shapes differ."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import baevski18_reference as fairseq
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.baevski18 import adaptive, loading, modeling

pytestmark = pytest.mark.bridge
LOG_PROBS, RESIDUALS = 1e-4, 2e-5
CASES = ("single", "edges", "sentence", "no_eos_start", "full_length", "batch", "padded", "too_long")


def load(style: str = "args", **kwargs: Any) -> Any:
    return tlsv.baevski18.load(fairseq.fixture(style), fairseq.DATA / "dict.txt", device="cpu", **kwargs)


def errors(case: str, log_probs: Tensor, residuals: list[Tensor], activations: list[Tensor]) -> tuple[float, float]:
    """Largest difference from fairseq in one case: of log-probs, and of residual stream and FFN activations."""
    expected = fairseq.expected()
    mask = expected.get(f"{case}.mask", torch.ones_like(expected[f"{case}.tokens"], dtype=torch.bool))
    inside = [(f"resid.{i}", x) for i, x in enumerate(residuals)] + [
        (f"mlp_post.{i}", x) for i, x in enumerate(activations)
    ]
    worst = 0.0
    for name, tensor in inside:
        if f"{case}.{name}" in expected:  # of the case that is too long, fairseq's last residual stream alone
            worst = max(worst, float((tensor - expected[f"{case}.{name}"])[mask].abs().max()))
    return float((log_probs - expected[f"{case}.log_probs"])[mask].abs().max()), worst


def run(model: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Log-probs, residual stream and FFN activations through TransformerLens."""
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    layers = range(len(model.blocks))
    residuals = [cache["blocks.0.hook_resid_pre"], *(cache[f"blocks.{i}.hook_resid_post"] for i in layers)]
    return logits, residuals, [cache[f"blocks.{i}.mlp.hook_post"] for i in layers]


@pytest.mark.parametrize("style", fairseq.STYLES)
def test_every_file_style_gives_fairseqs_outputs(style):
    """All cases of all three styles: log-probs, residual stream, FFN activations."""
    model = load(style)
    for case in CASES:
        log_probs, inside = errors(case, *run(model, fairseq.expected()[f"{case}.tokens"]))
        assert log_probs < LOG_PROBS, case
        assert inside < RESIDUALS, case


def test_in_float64_it_is_nearer_to_fairseqs_float32():
    """What is left is fairseq's own rounding."""
    model = load(dtype=torch.float64)
    for case in ("edges", "full_length"):
        log_probs, inside = errors(case, *run(model, fairseq.expected()[f"{case}.tokens"]))
        assert log_probs < 1e-5
        assert inside < 3e-6


@pytest.mark.hooked
def test_the_hooked_transformer_gives_fairseqs_outputs():
    """The same on a HookedTransformer, whose table of positions ends where the model's context does."""
    model = load(hooked=True)
    for case in (case for case in CASES if case not in ("too_long",)):
        log_probs, inside = errors(case, *run(model, fairseq.expected()[f"{case}.tokens"]))
        assert log_probs < LOG_PROBS, case
        assert inside < RESIDUALS, case


def test_scores_of_sentences_are_those_of_fairseqs_own_interface():
    """`</s>` in front, words scored one by one."""
    model = load()
    for known in fairseq.described()["hub_score"]:
        with pytest.warns(tlsv.UnknownWordsWarning) if 3 in known["targets"] else contextlib.nullcontext():
            tokens = model.to_tokens(known["text"])
        assert tokens[0].tolist() == [2, *known["targets"]]
        found = model(tokens).log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
        torch.testing.assert_close(found, torch.tensor(known["positional_scores"]), atol=LOG_PROBS, rtol=0)


@pytest.mark.parametrize("shape", fairseq.SHAPES)
def test_other_shapes_give_what_the_second_implementation_gives(shape, tmp_path):
    """Untied projections, odd sizes, other cutoffs, factors and numbers of bands: float64 to 1e-10."""
    checkpoint = fairseq.make_checkpoint(**fairseq.SHAPES[shape])
    reference = fairseq.Reference(checkpoint)
    model = tlsv.baevski18.load(*fairseq.write(tmp_path, checkpoint), device="cpu", dtype=torch.float64)
    # Every band's first and last word, and the special ones but padding.
    ends = [e for b in range(len(reference.words)) for e in (reference.starts[b], reference.starts[b + 1] - 1)]
    tokens = [2, *(t for t in ends if t != fairseq.PAD), 3, 0]
    logits, residuals, activations = run(model, torch.tensor([tokens]))
    stream, posts = reference.residuals(tokens)
    torch.testing.assert_close(logits[0], reference.log_probs(stream[-1]), atol=1e-10, rtol=0)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones_like(logits[..., 0]), atol=1e-10, rtol=0)
    for ours, theirs in zip([*residuals, *activations], [*stream, *posts], strict=True):
        torch.testing.assert_close(ours[0], theirs, atol=1e-10, rtol=0)


def test_the_full_size_configuration():
    """The published sizes, and the parameters that fairseq counts for them, tied and untied."""
    full = tlsv.baevski18.config()
    sizes = (full.n_layers, full.n_heads, full.d_model, full.d_mlp, full.d_vocab, full.d_head)
    assert sizes == (16, 8, 1024, 4096, 267_744, 128)
    assert [(band.start, band.stop, band.width) for band in full.bands] == [
        (0, 20_000, 1024),
        (20_000, 60_000, 256),
        (60_000, 267_744, 64),
    ]
    assert full.n_parameters == 246_933_504
    assert tlsv.baevski18.config(tied_projections=False).n_parameters == 247_261_184
    tiny = tlsv.baevski18.config(d_model=64, n_layers=3, n_heads=4, d_mlp=128, d_vocab=120, cutoffs=[40, 80])
    assert tiny.n_parameters == fairseq.described()["parameters"]
    assert sum(p.numel() for p in load().original_model.parameters()) == tiny.n_parameters


@pytest.mark.any_release
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layers": 3}, "no such field: layers"),
        ({"n_heads": 7}, "not divisible"),
        ({"cutoffs": (60_000, 20_000)}, "rise"),
        ({"cutoffs": ()}, "rise"),
        ({"d_vocab": 100}, "rise"),
        ({"factor": 64}, "without a width"),
        ({"n_layers": 0}, "positive whole number"),
        ({"bos_token": "<bos>"}, "bos_token"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    """One sentence that names the field."""
    with pytest.raises(ValueError, match=message):
        tlsv.baevski18.config(**overrides)


# Planted mistakes. Each is made in the checkpoint's tensors or in the module, and the comparison must see it.

State = dict[str, Tensor]


def swapped(first: str, second: str) -> Callable[[State], None]:
    def edit(state: State) -> None:
        for name in [name for name in state if first in name]:
            other = name.replace(first, second)
            state[name], state[other] = state[other], state[name]

    return edit


def changed(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
    def edit(state: State) -> None:
        for name in [name for name in state if part in name]:
            state[name] = change(state[name])

    return edit


def zero_pad_row(state: State) -> None:
    state["embed_tokens.words.0.weight"] = state["embed_tokens.words.0.weight"].clone()
    state["embed_tokens.words.0.weight"][1] = 0


def interleaved_heads(rows: Tensor) -> Tensor:
    return rows.reshape(4, 16, -1).transpose(0, 1).reshape(rows.shape)


IN_THE_STATE: dict[str, Callable[[State], None]] = {
    "queries and keys swapped": swapped("q_proj", "k_proj"),
    "keys and values swapped": swapped("k_proj", "v_proj"),
    "norms of the block swapped": swapped("self_attn_layer_norm", "final_layer_norm"),
    "heads interleaved": changed("v_proj", interleaved_heads),
    "output projection transposed": changed("out_proj.weight", lambda w: w.T.contiguous()),
    "no bias after attention": changed("out_proj.bias", torch.zeros_like),
    "no bias of values": changed("v_proj.bias", torch.zeros_like),
    "no bias in the feed-forward": changed("fc1.bias", torch.zeros_like),
    "gain stored as gain minus one": changed("norm.weight", lambda w: w + 1),
    "classes of the bands swapped": changed("lm_head.classes", lambda w: w.flip(0)),
    "words of the last band shifted by one": changed("words.2", lambda w: w.roll(1, 0)),
    "band 0 without its projection": changed("projections.0", lambda w: torch.eye(len(w))),
    "padding's row zeroed": zero_pad_row,
}


def no_scale(self: Any, ids: Tensor, forward: Any = adaptive.AdaptiveInput.forward) -> Tensor:
    return forward(self, ids) / self.scale


def off_by_one(rows_off: int) -> Callable[..., Tensor]:
    def forward(self: Any, rows: Tensor, own: Any = modeling.SinusoidalPositions.forward) -> Tensor:
        return own(self, rows + rows_off)

    return forward


def scaled_positions(self: Any, rows: Tensor, own: Any = modeling.SinusoidalPositions.forward) -> Tensor:
    return own(self, rows) * math.sqrt(self.shape.d_model)


def interleaved_positions(self: Any, rows: Tensor, own: Any = modeling.SinusoidalPositions.forward) -> Tensor:
    waves = own(self, rows)
    return waves.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def rates_over_half(self: Any, rows: Tensor) -> Tensor:
    half = self.shape.d_model // 2
    angles = rows[..., None] * torch.exp(torch.arange(half) * -(math.log(10000) / half))
    return torch.cat([angles.sin(), angles.cos()], -1)


def gelu(self: Any, x: Tensor) -> Tensor:
    return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


def unscaled(self: Any, x: Tensor, own: Any = modeling.SelfAttention.forward, **kwargs: Any) -> Any:
    return own(self, x, **{**kwargs, "on_scores": lambda scores: scores * math.sqrt(self.d_head)})


def sees_all(self: Any, x: Tensor, allowed: Tensor, own: Any = modeling.SelfAttention.forward, **kwargs: Any) -> Any:
    return own(self, x, allowed=torch.ones_like(allowed), **kwargs)


def normed_after(self: Any, x: Tensor, allowed: Tensor, past: Any = None, **kwargs: Any) -> tuple[Tensor]:
    x = self.self_attn_layer_norm(x + self.self_attn(x, allowed=allowed, past=past)[0])
    return (self.final_layer_norm(x + self.mlp(x)),)


def head_through_projection(self: Any, x: Tensor, own: Any = adaptive.AdaptiveSoftmax.forward) -> Tensor:
    (embedding,) = self._embedding
    head = embedding.words[0]
    plain = head.weight
    head.weight = torch.nn.Parameter(plain @ embedding.projections[0].weight.T)
    try:
        return own(self, x)
    finally:
        head.weight = plain


def one_softmax(self: Any, x: Tensor) -> Tensor:
    return (x @ self.dense().T).log_softmax(-1)


def no_share(self: Any, x: Tensor, own: Any = adaptive.AdaptiveSoftmax.forward) -> Tensor:
    shares = own(self, x)
    for band in self.shape.bands[1:]:
        shares[..., band.start : band.stop] = shares[..., band.start : band.stop].log_softmax(-1)
    return shares


def classes_do_not_compete(self: Any, x: Tensor, own: Any = adaptive.AdaptiveSoftmax.forward) -> Tensor:
    log_probs = own(self, x)
    first = self.shape.bands[0].stop
    log_probs[..., :first] = log_probs[..., :first].log_softmax(-1)
    return log_probs


def scaled_bands(self: Any, band: int, own: Any = adaptive.AdaptiveSoftmax._down) -> Tensor:
    return own(self, band) * math.sqrt(self.shape.d_model)


def normed_before_the_head(self: Any, x: Tensor, own: Any = adaptive.AdaptiveSoftmax.forward) -> Tensor:
    return own(self, torch.nn.functional.layer_norm(x, x.shape[-1:]))


def counts_padding(batch: int, n_new: int, before: int, ids: Any, mask: Any) -> Tensor:
    return torch.ones(batch, before + n_new, dtype=torch.bool)


IN_THE_MODULE: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "embedding not scaled": (adaptive.AdaptiveInput, "forward", no_scale),
    "positions one too early": (modeling.SinusoidalPositions, "forward", off_by_one(-1)),
    "positions one too late": (modeling.SinusoidalPositions, "forward", off_by_one(1)),
    "positions scaled": (modeling.SinusoidalPositions, "forward", scaled_positions),
    "sines and cosines interleaved": (modeling.SinusoidalPositions, "forward", interleaved_positions),
    "rates over half, not half minus one": (modeling.SinusoidalPositions, "forward", rates_over_half),
    "another activation": (modeling.FeedForward, "forward", gelu),
    "attention not scaled": (modeling.SelfAttention, "forward", unscaled),
    "attention looks ahead": (modeling.SelfAttention, "forward", sees_all),
    "norms after the addition": (modeling.Block, "forward", normed_after),
    "head read through its projection": (adaptive.AdaptiveSoftmax, "forward", head_through_projection),
    "one softmax over all words": (adaptive.AdaptiveSoftmax, "forward", one_softmax),
    "bands without their share": (adaptive.AdaptiveSoftmax, "forward", no_share),
    "classes left out of the head's sum": (adaptive.AdaptiveSoftmax, "forward", classes_do_not_compete),
    "embedding's scale in the softmax": (adaptive.AdaptiveSoftmax, "_down", scaled_bands),
    "a final norm": (adaptive.AdaptiveSoftmax, "forward", normed_before_the_head),
}


def module_errors(state: State, shape: Any) -> tuple[float, float]:
    """`errors` of the bare module over three cases."""
    model = loading.build(shape, state)
    worst = (0.0, 0.0)
    for case in ("edges", "sentence", "batch"):
        residuals: list[Tensor] = []
        activations: list[Tensor] = []
        hooks = [model.layers[0].register_forward_pre_hook(lambda m, a, kept=residuals: kept.append(a[0]))]
        for layer in model.layers:
            hooks.append(layer.register_forward_hook(lambda m, a, out, kept=residuals: kept.append(out[0])))
            hooks.append(layer.mlp.fc2.register_forward_pre_hook(lambda m, a, kept=activations: kept.append(a[0])))
        with torch.no_grad():
            log_probs = model(fairseq.expected()[f"{case}.tokens"]).logits
        for hook in hooks:
            hook.remove()
        worst = tuple(max(pair) for pair in zip(worst, errors(case, log_probs, residuals, activations), strict=True))
    return worst


@pytest.fixture(scope="module")
def parts() -> loading.Contents:
    return loading.read(fairseq.fixture(), fairseq.DATA / "dict.txt")


@pytest.mark.any_release
def test_without_a_planted_mistake_the_bare_module_agrees(parts):
    """The comparison that the planted mistakes are held against."""
    log_probs, inside = module_errors(dict(parts.state), parts.config)
    assert log_probs < LOG_PROBS
    assert inside < RESIDUALS


@pytest.mark.any_release
@pytest.mark.parametrize("mistake", IN_THE_STATE)
def test_a_mistake_in_the_weights_is_seen(mistake, parts):
    """Wrong rows, names or signs of stored tensors."""
    state = dict(parts.state)
    IN_THE_STATE[mistake](state)
    log_probs, inside = module_errors(state, parts.config)
    assert log_probs > 10 * LOG_PROBS or inside > 2 * RESIDUALS


@pytest.mark.any_release
@pytest.mark.parametrize("mistake", IN_THE_MODULE)
def test_a_mistake_in_the_computation_is_seen(mistake, parts, monkeypatch):
    """Another formula than fairseq's."""
    owner, name, wrong = IN_THE_MODULE[mistake]
    monkeypatch.setattr(owner, name, wrong)
    log_probs, inside = module_errors(dict(parts.state), parts.config)
    assert log_probs > 10 * LOG_PROBS or inside > 2 * RESIDUALS


@pytest.mark.any_release
def test_a_wrong_eps_is_seen(parts, monkeypatch):
    """The smallest of all: 6e-5 in the residual stream."""
    own = torch.nn.LayerNorm.__init__
    monkeypatch.setattr(torch.nn.LayerNorm, "__init__", lambda self, size, eps=0.0: own(self, size, eps=1e-12))
    assert module_errors(dict(parts.state), parts.config)[1] > 2 * RESIDUALS


def test_padding_that_counts_is_seen(monkeypatch):
    """Positions count words, not padding: padded on the left, a text reads as it does alone."""
    model = load()
    text = fairseq.expected()["sentence.tokens"]
    padded = torch.nn.functional.pad(text, (3, 0), value=fairseq.PAD)
    alone = model(text)
    torch.testing.assert_close(model(padded)[:, 3:], alone, atol=LOG_PROBS, rtol=0)
    mask = torch.nn.functional.pad(torch.ones_like(text), (3, 0))
    other = torch.nn.functional.pad(text, (3, 0), value=7)
    torch.testing.assert_close(model(other, attention_mask=mask)[:, 3:], alone, atol=LOG_PROBS, rtol=0)
    monkeypatch.setattr(modeling, "real_tokens", counts_padding)
    assert (model(padded)[:, 3:] - alone).abs().max() > 0.1


def test_ids_outside_the_vocabulary_are_refused():
    """fairseq reads them as something else."""
    for ids in ([2, 120], [2, -1]):
        with pytest.raises(ValueError, match="token ids run from 0 to 119"):
            load()(torch.tensor([ids]))
