"""The adaptive softmax as a readout like any other: increases, search, vocabulary, TransformerLens's tools."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import baevski18_reference as fairseq
from helpers import zoo
from helpers.bounds import both_bounds
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.baevski18 import adaptive
from tl_subvalues.numerics.distributions import distributions_of

pytestmark = [pytest.mark.bridge, pytest.mark.any_release]
PROMPT = [2, 9, 33, 58, 12, 4]
# A word of each band of the default shape, its first and its last where they might be mistaken for a neighbour's.
TARGETS = (7, 11, 12, 29, 30, 60)
TABLES = ("layers", "heads", "head_positions", "attn_neurons", "ffn_neurons")
SHAPES = {"tied": {}, **{name: fairseq.SHAPES[name] for name in ("untied", "one band", "four bands untied")}}


class Model:
    """A loaded model, its reference, and one run."""

    def __init__(self, folder: Path, shape: str, dtype: torch.dtype = torch.float64, **kwargs: Any) -> None:
        checkpoint = fairseq.make_checkpoint(**SHAPES[shape])
        self.reference = fairseq.Reference(checkpoint)
        self.model = tlsv.baevski18.load(*fairseq.write(folder, checkpoint), device="cpu", dtype=dtype, **kwargs)

    def trace(self, target: int, **kwargs: Any) -> tlsv.Trace:
        return tlsv.trace(self.model, PROMPT, target, **kwargs)

    def increase(self, x: Tensor, v: Tensor, target: int) -> float:
        return float((self.reference.log_probs((x + v)[None]) - self.reference.log_probs(x[None]))[0, target])


@pytest.fixture(scope="module", params=["tied", *zoo.slow(*list(SHAPES)[1:])])
def made(request, tmp_path_factory) -> Model:
    return Model(tmp_path_factory.mktemp("made"), request.param)


def draw(*shape: int, seed: int = 0, length: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * length


@pytest.mark.parametrize("scale", [1.0, torch.tensor(7.0), "recomputed"], ids=str)
def test_the_readout_is_the_references(made, scale):
    """Log-probs, one word's, bs-values and increases; there is no final norm, so no scale matters."""
    readout = tlsv.Readout(made.model, scale=scale)
    x, v = draw(3, 32), draw(5, 3, 32, seed=1)
    expected = made.reference.log_probs(x)
    torch.testing.assert_close(readout.log_probs(x), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(readout.logits(x), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(readout.bs_values(x), made.reference.bs_values(x), atol=1e-10, rtol=0)
    after = torch.stack([made.reference.log_probs(x + part) for part in v])
    for token in TARGETS:
        torch.testing.assert_close(readout.log_prob(x, token), expected[:, token], atol=1e-10, rtol=0)
    for token in TARGETS[::2]:
        gained = after[..., token] - expected[:, token]
        torch.testing.assert_close(tlsv.log_prob_increase(readout, x, v, token), gained, atol=1e-10, rtol=0)
        probability = after[..., token].exp() - expected[:, token].exp()
        torch.testing.assert_close(tlsv.prob_increase(readout, x, v, token), probability, atol=1e-10, rtol=0)
    assert readout.affine
    assert readout.bounded


@pytest.mark.parametrize("length", [1e-6, 1e3])
def test_tiny_and_huge_subvalues_keep_their_digits(made, length):
    """Increases of 1e-6 nats are right to ten digits, those of thousands to rounding."""
    readout = tlsv.Readout(made.model, scale="recomputed")
    x, v = draw(32), draw(4, 32, seed=1, length=length)
    for token in TARGETS:
        found = tlsv.log_prob_increase(readout, x, v, token)
        expected = made.reference.log_probs(x + v)[:, token] - made.reference.log_probs(x[None])[0, token]
        torch.testing.assert_close(found, expected, atol=1e-9 * length + 1e-14, rtol=1e-6 if length < 1 else 1e-9)


@pytest.mark.each_release
def test_every_table_is_brute_force(made):
    """Every part of every table, for words of several bands: p(w | x + v) and p(w | x) by the second implementation."""
    for target in TARGETS[::2]:
        trace = made.trace(target)
        assert (
            abs(trace.log_prob - float(made.reference.log_probs(trace.run.activations.final_residual(-1))[0, target]))
            < 1e-10
        )
        for table in TABLES:
            rows = getattr(trace, table)() if table == "layers" else getattr(trace, table)(top=None)
            for row in rows.iloc[:: max(1, len(rows) // 12)].itertuples():
                sublayer = getattr(row, "sublayer", "mlp" if table == "ffn_neurons" else "attn")
                x = trace.run.activations.residual(row.layer, sublayer, -1)[0]
                expected = made.increase(x, vector(made, trace, table, row), target)
                assert abs(row.log_prob_increase - expected) < 1e-9, (table, row.label)


def vector(made: Model, trace: tlsv.Trace, table: str, row: Any) -> Tensor:
    """A row's part, from the hooks and fairseq's weights."""
    cache, weights = trace.cache, made.reference.model
    if table == "layers":
        return cache[f"blocks.{row.layer}.hook_{row.sublayer}_out"][0, -1]
    if table == "ffn_neurons":
        coefficient = cache[f"blocks.{row.layer}.mlp.hook_post"][0, -1, row.neuron]
        return coefficient * weights[f"layers.{row.layer}.fc2.weight"][:, row.neuron]
    pattern = cache[f"blocks.{row.layer}.attn.hook_pattern"][0, row.head, -1]
    z = pattern[:, None] * cache[f"blocks.{row.layer}.attn.hook_v"][0, :, row.head]  # [source, d_head]
    z = z.sum(0, keepdim=True) if table == "heads" else z[row.position : row.position + 1]
    columns = weights[f"layers.{row.layer}.self_attn.out_proj.weight"].unflatten(1, (-1, z.shape[1]))[:, row.head]
    if table == "attn_neurons":
        return z[0, row.dim] * columns[:, row.dim]
    return columns @ z[0]


def test_the_scale_makes_no_difference(made):
    """Without a final norm, recomputed is frozen."""
    for target in TARGETS[:2]:
        frozen, recomputed = (
            made.trace(target, scale=scale).ffn_neurons(top=None) for scale in ("frozen", "recomputed")
        )
        pd.testing.assert_frame_equal(frozen, recomputed)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS[1:4])
def test_search_is_sweep_and_bounds_hold(target, tmp_path, read_in_blocks):
    """Same rows and bits for the highest and the lowest; in float64 every increase lies between its bounds."""
    read_in_blocks(8, 8)
    single = Model(tmp_path, "tied", torch.float32)
    with torch.no_grad():
        for layer in single.model.original_model.layers:  # shorter parts, as trained models have: bounds are near
            layer.mlp.fc2.original_component.weight.mul_(0.1)
            layer.self_attn.out_proj.original_component.weight.mul_(0.1)
    trace = tlsv.trace(single.model, PROMPT[:3], target)
    pruned = 0
    for table in TABLES[1:]:
        for largest in (True, False):
            for k in (1, 6):
                found = getattr(trace, table)(top=k, largest=largest)
                swept = getattr(trace, table)(top=None, largest=largest)
                pd.testing.assert_frame_equal(found, swept.head(k), check_exact=True)
                certificate = found.attrs["certificate"]
                pruned += certificate["candidates"] - certificate["evaluated"]
    assert pruned > 0
    for shape in ("tied", "untied"):
        trace = Model(tmp_path, shape).trace(target)
        for unit in ("ffn_neuron", "attn_neuron", "head", "sublayer"):
            candidates = trace.candidates(unit)
            increase = candidates.evaluate(torch.arange(len(candidates)))
            upper, lower = both_bounds(candidates)
            assert (increase <= upper + 1e-9).all()
            assert (increase >= lower - 1e-9).all()


def test_each_softmax_alone_is_another_increase(tmp_path):
    """The comparisons here would see an increase that forgets one of the two softmaxes."""
    trace = Model(tmp_path, "tied").trace(30)
    head, band = trace.reading.measure.ratios
    residuals = trace.reading.residuals
    whole = tlsv.log_prob_increase(trace.readout, residuals[0], draw(40, 32), 30)
    for ratio in (head, band):
        alone = ratio.softmax.bs_value(draw(40, 32), ratio.over.ids[0])
        under = distributions_of(ratio.softmax.logits(residuals[:1]))
        alone = alone - ratio.softmax.log_mean_exp(draw(40, 32), under, torch.zeros(40, dtype=torch.long))
        assert (whole - alone).abs().max() > 0.1


@pytest.mark.slow
def test_a_batch_shares_its_sweep_whatever_bands_the_targets_are_in(made):
    """Targets of several bands at once: the shared sweep gives what single traces give."""
    prompts = [PROMPT[:3], PROMPT[:2], PROMPT[:3], PROMPT[2:]]
    targets = [7, 30, 12, 60]
    batch = tlsv.trace_batch(made.model, prompts, targets)
    for table in ("ffn_neurons", "attn_neurons"):
        for top in (None, 5):
            found = getattr(batch, table)(top=top)
            for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
                alone = getattr(tlsv.trace(made.model, prompt, target), table)(top=top)
                mine = found[found["prompt"] == number].drop(columns="prompt").reset_index(drop=True)
                both = mine.merge(alone, on="label", suffixes=("", "_alone"))
                assert len(both) == len(alone)
                assert (both["log_prob_increase"] - both["log_prob_increase_alone"]).abs().max() < 1e-9


def test_the_vocabulary_goes_across_the_bands(made):
    """Top and bottom words of neurons and a sublayer: scores with the band's share, and the band by number."""
    trace = made.trace(30)
    weights = made.reference.model
    for label, written in (
        ("L1N3", weights["layers.1.fc2.weight"][:, 3]),
        ("L0H1D2@3", weights["layers.0.self_attn.out_proj.weight"][:, 32 // made.model.cfg.n_heads + 2]),
        ("1_mlp_out", trace.cache["blocks.1.hook_mlp_out"][0, -1]),
    ):
        values = made.reference.bs_values(written[None])[0]
        table = trace.vocabulary(label, k=61)
        top = table[table["side"] == "top"]
        assert top["token_id"].tolist() == values.sort(descending=True).indices.tolist()
        torch.testing.assert_close(torch.tensor(top["bs_value"].to_numpy()), values.sort(descending=True).values)
        if len(made.reference.words) > 1:
            assert top["band"].tolist() == [made.reference.band(token) for token in top["token_id"]]
        else:
            assert "band" not in table
    table = trace.vocabulary(["L1N3", "L0N2"], k=2)
    assert table.columns[0] == "label"


def test_a_model_with_one_softmax_has_no_bands(tokens):
    """The column is for models that have them."""
    from helpers import zoo

    assert "band" not in tlsv.trace(zoo.model("llama"), tokens, 5).vocabulary("L0N1")


def test_nothing_is_ever_dense(tmp_path, monkeypatch):
    """Loading, tracing, every table, the vocabulary, generation: W_E and W_U are multiplied out on request only."""

    def forbidden(self: Any) -> Tensor:
        raise AssertionError("multiplied out")

    own = [adaptive.AdaptiveInput.dense, adaptive.AdaptiveSoftmax.dense]
    monkeypatch.setattr(adaptive.AdaptiveInput, "dense", forbidden)
    monkeypatch.setattr(adaptive.AdaptiveSoftmax, "dense", forbidden)
    made = Model(tmp_path, "untied")
    trace = made.trace(40)
    for table in TABLES:
        getattr(trace, table)()
    trace.vocabulary("L0N3")
    tlsv.trace_batch(made.model, [PROMPT, PROMPT[1:]], [5, 50]).ffn_neurons(top=None)
    made.model.generate(torch.tensor([PROMPT]), max_new_tokens=2, verbose=False)
    monkeypatch.setattr(adaptive.AdaptiveInput, "dense", own[0])
    monkeypatch.setattr(adaptive.AdaptiveSoftmax, "dense", own[1])
    embedded = torch.stack([made.reference.embed(token) for token in range(61)])
    torch.testing.assert_close(made.model.W_E.detach(), embedded)
    x = draw(3, 32)
    torch.testing.assert_close(x @ made.model.W_U.detach(), tlsv_columns(made.reference, x))
    assert made.model.b_U.shape == (61,)
    torch.testing.assert_close(made.model.pos_embed.W_pos[5].detach(), made.reference.position(7))


def tlsv_columns(reference: fairseq.Reference, x: Tensor) -> Tensor:
    """A word's own score, without its band's share."""
    scores = reference.scores(x)
    return torch.cat([scores[0][:, : len(reference.words[0])], *scores[1:]], -1)


# TransformerLens's own tools.

BOTH = [False, pytest.param(True, marks=pytest.mark.hooked)]


@pytest.mark.each_release
@pytest.mark.parametrize("hooked", BOTH)
def test_hooks_are_live(hooked, tmp_path):
    """What a hook returns is used: pattern, scores, values, FFN activations, embedding, positions, the last stream."""
    made = Model(tmp_path, "tied", hooked=hooked)
    tokens = torch.tensor([PROMPT])
    plain = made.model(tokens)
    for name in (
        "blocks.0.attn.hook_pattern",
        "blocks.0.attn.hook_attn_scores",
        "blocks.0.attn.hook_v",
        "blocks.1.attn.hook_z",
        "blocks.1.mlp.hook_post",
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_resid_post",
        "hook_embed",
        "hook_pos_embed",
        "blocks.0.ln1.hook_scale",
    ):
        edited = made.model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: value * 0.5)])
        assert (edited - plain).abs().max() > 1e-3, name
    zeroed = made.model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", lambda value, hook: value * 0)])
    torch.testing.assert_close(zeroed[0], made.reference.log_probs(torch.zeros(len(PROMPT), 32)), atol=1e-10, rtol=0)


@pytest.mark.each_release
@pytest.mark.parametrize("hooked", BOTH)
def test_the_view_answers_what_switches_a_neuron_on(hooked, tmp_path):
    """Keys, biases and norms: they give the run's values and pre-activations from its residual stream."""
    from tl_subvalues.model_view import view_of

    made = Model(tmp_path, "tied", hooked=hooked)
    _, cache = made.model.run_with_cache(torch.tensor([PROMPT]))
    for layer in range(2):
        attention, ffn = view_of(made.model).layer(layer).attention(), view_of(made.model).layer(layer).ffn()
        read = attention.norm(cache[f"blocks.{layer}.hook_resid_pre"])
        values = torch.einsum("bpm,hme->bphe", read, attention.W_V) + attention.b_V
        torch.testing.assert_close(values, cache[f"blocks.{layer}.attn.hook_v"])
        before = ffn.norm(cache[f"blocks.{layer}.hook_resid_mid"]) @ ffn.W_in + ffn.b_in
        torch.testing.assert_close(before, cache[f"blocks.{layer}.mlp.hook_pre"])
        torch.testing.assert_close(
            ffn.norm.scale(cache[f"blocks.{layer}.hook_resid_mid"]), cache[f"blocks.{layer}.ln2.hook_scale"]
        )


@pytest.mark.each_release
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_traced(dtype, tmp_path):
    """Everything is read in float32; the model's own rounding is what is left."""
    made = Model(tmp_path, "tied", dtype)
    trace = made.trace(40)
    exact = Model(tmp_path, "tied").trace(40)
    assert abs(trace.log_prob - exact.log_prob) < 0.5
    assert len(trace.ffn_neurons(top=5)) == 5
    assert trace.readout.log_probs(torch.zeros(32)).dtype == torch.float32


@pytest.mark.each_release
@pytest.mark.slow
@pytest.mark.parametrize("hooked", BOTH)
def test_generation_is_greedy_decoding(hooked, tmp_path):
    """With and without a cache of keys and values, from tokens and from text: each word is the most likely next."""
    made = Model(tmp_path, "tied", torch.float32, hooked=hooked)
    tokens = list(PROMPT)
    for _ in range(5):
        stream, _ = made.reference.residuals(tokens)
        tokens.append(int(made.reference.log_probs(stream[-1])[-1].argmax()))
    arguments = {"max_new_tokens": 5, "do_sample": False, "verbose": False, "stop_at_eos": False}
    for cached in (True, False):
        out = made.model.generate(torch.tensor([PROMPT]), use_past_kv_cache=cached, **arguments)
        assert out[0].tolist() == tokens
    if not hooked:  # Hugging Face's own way too, which stops at </s>
        out = made.model.original_model.generate(torch.tensor([PROMPT]), max_new_tokens=5, do_sample=False)
        assert out[0].tolist() == tokens[: out.shape[1]]
    text = made.model.to_string(torch.tensor(PROMPT[1:]))
    said = made.model.generate(text, **arguments)
    assert said.split()[-5:] == made.model.to_string(torch.tensor(tokens[-5:])).split()


@pytest.mark.each_release
@pytest.mark.parametrize("hooked", BOTH)
def test_what_would_change_the_model_is_refused(hooked, tmp_path):
    """Folding norms and centring, under all their names: one sentence, and the model is as it was."""
    made = Model(tmp_path, "tied", hooked=hooked)
    tokens = torch.tensor([PROMPT])
    before = made.model(tokens)
    names = ["process_weights_", "load_and_process_state_dict", "center_unembed"] if hooked else []
    for name in names or ["enable_compatibility_mode", "process_weights"]:
        with pytest.raises(tlsv.UnsupportedModelError, match="no final norm and an adaptive softmax"):
            getattr(made.model, name)()
    assert torch.equal(made.model(tokens), before)


@pytest.mark.hooked
def test_the_hooked_transformer_is_traced_alike(tmp_path):
    """Same tables to rounding as the bridge's."""
    bridge, hooked = (Model(tmp_path, "untied", hooked=hooked).trace(40) for hooked in (False, True))
    for table in TABLES:
        both = getattr(bridge, table)().merge(getattr(hooked, table)(), on="label", suffixes=("", "_hooked"))
        assert len(both) == len(getattr(bridge, table)())
        assert (both["log_prob_increase"] - both["log_prob_increase_hooked"]).abs().max() < 1e-10


@pytest.mark.each_release
def test_without_hooked_transformer_the_way_out_is_named(tmp_path, monkeypatch):
    """On TransformerLens 4 hooked=True is refused in one sentence."""
    if zoo.has_hooked_transformer():
        monkeypatch.setitem(sys.modules, "transformer_lens.hook_points", None)  # an import fails then
    with pytest.raises(tlsv.UnsupportedModelError, match="leave hooked=False"):
        Model(tmp_path, "tied", hooked=True)


@pytest.mark.each_release
def test_left_padded_batches_and_cached_runs(made):
    """A batch of texts, as TransformerLens pads it on either side, reads as its texts do alone."""
    texts = ["w9 w33 w58 w12", "w20 w5"]
    for side in ("left", "right"):
        tokens = made.model.to_tokens(texts, padding_side=side)
        logits = made.model(texts, padding_side=side)
        for row, text in enumerate(texts):
            alone = made.model(text)[0]
            real = tokens[row] != fairseq.PAD
            torch.testing.assert_close(logits[row][real], alone, atol=1e-10, rtol=0)


@pytest.mark.each_release
def test_the_loss_is_that_of_the_log_probs(made):
    """TransformerLens's loss takes the log-softmax once more, which changes nothing."""
    tokens = torch.tensor([PROMPT])
    expected = -made.model(tokens)[0, :-1].gather(1, tokens[0, 1:, None]).mean()
    torch.testing.assert_close(made.model(tokens, return_type="loss"), expected)


def test_a_model_too_small_for_its_prompt(made):
    """More tokens than the context are refused by trace, though the positions would go on."""
    with pytest.raises(ValueError, match="more than the 24"):
        tlsv.trace(made.model, [2] + [5] * 24, 7)
