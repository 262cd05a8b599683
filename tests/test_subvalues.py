"""Subvalues: by hand on small tensors, then the stacks that go into TransformerLens's own functions."""

import pytest
import torch
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.decomposition.subvalues import HeadPositionSubvalues, NeuronSubvalues, WholeSubvalues, weighted_values
from tl_subvalues.labels import parse_label
from tl_subvalues.numerics.norms import Norm, Passage

D_MODEL, HEADS, D_HEAD, SOURCES = 6, 2, 3, 4
PASSAGES = {
    "nothing": (Passage(), None),
    "multiplier": (Passage(multiplier=0.4), None),
    "rms norm": (Passage(Norm("rms", torch.linspace(0.5, 2, D_MODEL), None, 1e-5)), torch.tensor([1.7])),
    "layer norm, multiplier": (
        Passage(Norm("layer", torch.linspace(-1, 2, D_MODEL), torch.ones(D_MODEL), 1e-5), 0.4),
        torch.tensor([1.7]),
    ),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def carried(v: Tensor, name: str) -> Tensor:
    """One vector through a passage, written out; a post-norm's bias belongs to the bias part."""
    passage, scale = PASSAGES[name]
    if passage.norm is not None:
        v = v - v.mean() if passage.norm.kind == "layer" else v
        v = v / scale * passage.norm.gain
    return v * passage.multiplier


def check(parts, expected: list[Tensor]) -> None:
    """vectors(index), in any order and with repetitions, and inner_products agree with vectors made one by one."""
    stack = torch.stack(expected)
    assert len(parts) == len(stack)
    torch.testing.assert_close(parts.vectors(torch.arange(len(parts))), stack)
    index = torch.tensor([len(stack) - 1, 0, 1, 1])
    torch.testing.assert_close(parts.vectors(index), stack[index])
    assert parts.vectors(torch.zeros(0, dtype=torch.long)).shape == (0, stack.shape[1])
    covector = draw(stack.shape[1], seed=9)
    torch.testing.assert_close(parts.inner_products(covector), stack @ covector)


@pytest.mark.any_release
def test_weighted_values_by_hand():
    """z_p[h] = pattern[h, p] * v[p, h]."""
    pattern = torch.tensor([[0.25, 0.75], [1.0, 0.0]])  # [head, source]
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])  # [source, head, d_head]
    expected = [[[0.25, 0.5], [3.0, 4.0]], [[3.75, 4.5], [0.0, 0.0]]]
    assert weighted_values(pattern, values).tolist() == expected
    batched = weighted_values(torch.stack([pattern, pattern * 2]), torch.stack([values, values]))
    assert batched[1].tolist() == (torch.tensor(expected) * 2).tolist()


@pytest.mark.any_release
def test_whole_subvalues():
    """Parts that are held are given as they are."""
    stack = draw(5, D_MODEL)
    check(WholeSubvalues(stack), list(stack))


@pytest.mark.any_release
@pytest.mark.parametrize("passage", PASSAGES)
def test_ffn_neurons(passage):
    """Part n is m_n times row n of W_out, through what follows the FFN."""
    m, W_out = draw(7), draw(7, D_MODEL, seed=1)
    check(NeuronSubvalues(m, W_out, *PASSAGES[passage]), [carried(m[n] * W_out[n], passage) for n in range(7)])


@pytest.mark.any_release
@pytest.mark.parametrize("passage", PASSAGES)
def test_attn_neurons(passage):
    """Source positions outermost, then heads, then indices: z_p[h, i] times row (h, i) of W_O."""
    z, W_O = draw(SOURCES, HEADS, D_HEAD), draw(HEADS, D_HEAD, D_MODEL, seed=1)
    expected = [
        carried(z[p, h, i] * W_O[h, i], passage) for p in range(SOURCES) for h in range(HEADS) for i in range(D_HEAD)
    ]
    check(NeuronSubvalues(z.flatten(), W_O.flatten(0, 1), *PASSAGES[passage]), expected)


@pytest.mark.any_release
@pytest.mark.parametrize("passage", PASSAGES)
def test_head_positions(passage):
    """Heads outermost, then source positions: what head h writes of position p."""
    weighted, W_O = draw(HEADS, SOURCES, D_HEAD), draw(HEADS, D_HEAD, D_MODEL, seed=1)
    expected = [carried(weighted[h, p] @ W_O[h], passage) for h in range(HEADS) for p in range(SOURCES)]
    check(HeadPositionSubvalues(weighted, W_O, *PASSAGES[passage]), expected)


@pytest.mark.any_release
def test_half_precision_weights_are_read_as_they_are():
    """Weights stay in the model's dtype; the parts come in that of the coefficients."""
    m, W_out = draw(7), draw(7, D_MODEL, seed=1).bfloat16()
    parts = NeuronSubvalues(m, W_out, Passage(), None)
    assert parts.vectors(torch.arange(7)).dtype == torch.float32
    check(parts, list(m[:, None] * W_out.float()))


# The functional core on caches. llama has grouped queries (4 heads over 2), gemma2 post-norms, granite a multiplier.

FAMILIES = ("llama", "llama_biased_tied", "gpt2", "gemma2", "granite")
BY = ("head", "head_position", "neuron")


@pytest.fixture(scope="module")
def models() -> dict:
    return {family: zoo.model(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def batch(tokens) -> Tensor:
    return torch.cat([tokens, tokens.flip(1)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", BY)
def test_attn_stacks_add_up(models, family, by, batch):
    """With the bias part, every stack sums to what enters the residual stream, at every position of every prompt."""
    _, cache = models[family].run_with_cache(batch)
    for layer in (0, 1):
        stack = tlsv.attn_subvalues(models[family], cache, layer, by=by, pos_slice=None, incl_bias=True)
        torch.testing.assert_close(stack.sum(0), cache[f"blocks.{layer}.hook_attn_out"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_ffn_stacks_add_up(models, family, batch):
    """All neurons and the bias part sum to what enters the residual stream."""
    _, cache = models[family].run_with_cache(batch)
    for layer in (0, 1):
        stack = tlsv.ffn_subvalues(models[family], cache, layer, pos_slice=None, incl_bias=True)
        torch.testing.assert_close(stack.sum(0), cache[f"blocks.{layer}.hook_mlp_out"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("by", BY)
def test_attn_rows_are_what_their_labels_say(models, by, batch):
    """Each row against pattern, value and output weights of Hugging Face's module, grouped queries and all."""
    model = models["llama"]
    _, cache = model.run_with_cache(batch)
    stack, labels = tlsv.attn_subvalues(model, cache, 1, by=by, return_labels=True)
    attn = model.original_model.model.layers[1].self_attn
    W_O = attn.o_proj.weight.detach().T.reshape(4, 8, 32)
    v = cache["blocks.1.attn.hook_v"].reshape(2, 7, 2, 8)
    assert len(set(labels)) == len(labels) == len(stack) == {"head": 4, "head_position": 28, "neuron": 224}[by]
    for row, label in zip(stack, labels, strict=True):
        found = parse_label(label)
        assert found.layer == 1
        pattern = cache["blocks.1.attn.hook_pattern"][:, found.head, -1]  # [batch, source]
        z = pattern[..., None] * v[:, :, found.head // 2]  # [batch, source, d_head]
        z = z.sum(1) if found.position is None else z[:, found.position]
        rows = W_O[found.head]
        expected = z @ rows if found.dim is None else z[:, found.dim, None] * rows[found.dim]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.any_release
@pytest.mark.parametrize(
    ("pos_slice", "positions"),
    [
        (None, list(range(7))),
        (-1, 6),
        (0, 0),
        (3, 3),
        ((2, 5), [2, 3, 4]),
        ((1, 6, 2), [1, 3, 5]),
        ([4, 0, -1], [4, 0, 6]),
        (slice(1, 3), [1, 2]),
    ],
    ids=repr,
)
def test_pos_slice_is_transformer_lenss(models, pos_slice, positions, batch):
    """int (which drops the axis), tuple, list, slice or None, as in ActivationCache; all from one whole stack."""
    model = models["gemma2"]
    _, cache = model.run_with_cache(batch)
    for by in BY:
        whole = tlsv.attn_subvalues(model, cache, 1, by=by, pos_slice=None, incl_bias=True)
        chosen = tlsv.attn_subvalues(model, cache, 1, by=by, pos_slice=pos_slice, incl_bias=True)
        torch.testing.assert_close(chosen, whole[:, :, positions], atol=1e-6, rtol=1e-5)
    whole = tlsv.ffn_subvalues(model, cache, 1, pos_slice=None, incl_bias=True)
    chosen = tlsv.ffn_subvalues(model, cache, 1, pos_slice=pos_slice, incl_bias=True)
    torch.testing.assert_close(chosen, whole[:, :, positions], atol=1e-6, rtol=1e-5)


@pytest.mark.any_release
@pytest.mark.parametrize(
    ("neuron_slice", "neurons"),
    [
        (None, list(range(48))),
        (5, [5]),
        (-1, [47]),
        ((2, 6), [2, 3, 4, 5]),
        ([7, 1, -2], [7, 1, 46]),
        (slice(40, None), list(range(40, 48))),
        (torch.tensor([3, 9]), [3, 9]),
    ],
    ids=repr,
)
def test_neuron_slice_chooses_neurons(models, neuron_slice, neurons, batch):
    """The chosen neurons in the order given, each with its label; the bias part stays last."""
    model = models["llama_biased_tied"]
    _, cache = model.run_with_cache(batch)
    whole = tlsv.ffn_subvalues(model, cache, 1)
    chosen, labels = tlsv.ffn_subvalues(model, cache, 1, neuron_slice=neuron_slice, incl_bias=True, return_labels=True)
    torch.testing.assert_close(chosen[:-1], whole[neurons])
    assert labels == [f"L1N{i}" for i in neurons] + ["1_mlp_bias"]


@pytest.mark.parametrize("by", BY)
def test_a_batch_is_its_prompts_one_by_one(models, by, batch):
    """Row b of a batch's stack is the stack of prompt b alone, and a cache without batch axis drops it."""
    model = models["gemma2"]
    _, cache = model.run_with_cache(batch)
    together, labels = tlsv.attn_subvalues(model, cache, 1, by=by, incl_bias=True, return_labels=True)
    neurons = tlsv.ffn_subvalues(model, cache, 1, incl_bias=True)
    assert labels[-1] == "1_attn_bias"
    assert together.shape == (len(labels), 2, 32)
    for b in (0, 1):
        _, alone = model.run_with_cache(batch[b : b + 1], remove_batch_dim=True)
        own, own_labels = tlsv.attn_subvalues(model, alone, 1, by=by, incl_bias=True, return_labels=True)
        assert own_labels == labels
        torch.testing.assert_close(own, together[:, b], atol=1e-5, rtol=1e-4)
        own = tlsv.ffn_subvalues(model, alone, 1, incl_bias=True)
        torch.testing.assert_close(own, neurons[:, b], atol=1e-5, rtol=1e-4)
        every = tlsv.attn_subvalues(model, alone, 1, by=by, pos_slice=None)
        assert every.shape == (len(labels) - 1, 7, 32)


def test_stacks_go_into_transformer_lenss_own_functions(batch):
    """logit_attrs and apply_ln_to_stack take the stacks, and attribute to the sum what they attribute to the parts."""
    model = zoo.model("llama", compatibility=True)
    _, cache = model.run_with_cache(batch)
    targets = torch.tensor([4, 5])
    for function in (tlsv.attn_subvalues, tlsv.ffn_subvalues):
        last = function(model, cache, 1, incl_bias=True)
        parts = cache.logit_attrs(last, targets, pos_slice=-1)
        assert parts.shape == last.shape[:2]
        name = "attn" if function is tlsv.attn_subvalues else "mlp"
        sublayer = cache[f"blocks.1.hook_{name}_out"][None, :, -1]
        whole = cache.logit_attrs(sublayer, targets, pos_slice=-1)
        torch.testing.assert_close(parts.sum(0), whole[0], atol=1e-4, rtol=1e-4)
        every = function(model, cache, 1, pos_slice=None)
        assert cache.apply_ln_to_stack(every).shape == every.shape
    _, alone = model.run_with_cache(batch[:1], remove_batch_dim=True)
    last = tlsv.attn_subvalues(model, alone, 1, by="neuron")
    assert alone.logit_attrs(last, 4, pos_slice=-1, has_batch_dim=False).shape == last.shape[:1]


def test_bs_values_of_a_stack_are_transformer_lenss_logit_attrs(batch):
    """In compatibility mode, where the norm's gain is folded, both read a stack alike."""
    model = zoo.model("llama", compatibility=True)
    _, cache = model.run_with_cache(batch)
    stack = tlsv.attn_subvalues(model, cache, 1)
    readout = tlsv.Readout(model, scale=cache["ln_final.hook_scale"][:, -1])
    ours = readout.bs_values(stack)[:, [0, 1], [4, 5]]
    theirs = cache.logit_attrs(stack, torch.tensor([4, 5]), pos_slice=-1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_cache_of_some_positions_serves_heads_only(models, batch):
    """Source positions that were not cached cannot be read: refused, with by='head' as the way out, which works."""
    model = models["llama"]
    _, whole = model.run_with_cache(batch)
    for pos_slice in (-1, (1, 3)):
        _, cache = model.run_with_cache(batch, pos_slice=pos_slice)
        for by in ("head_position", "neuron"):
            with pytest.raises(ValueError, match=r"source positions.*by='head'"):
                tlsv.attn_subvalues(model, cache, 1, by=by)
        heads = tlsv.attn_subvalues(model, cache, 1, by="head")
        at = -1 if pos_slice == -1 else 2
        torch.testing.assert_close(heads, tlsv.attn_subvalues(model, whole, 1, pos_slice=at), atol=1e-5, rtol=1e-4)


def test_a_stack_needs_only_its_own_hooks(models, batch):
    """Heads need z alone, neurons their coefficients; what is missing otherwise is named in one KeyError."""
    model = models["llama"]
    _, z_only = model.run_with_cache(batch, names_filter="blocks.1.attn.hook_z")
    assert tlsv.attn_subvalues(model, z_only, 1).shape == (4, 2, 32)
    with pytest.raises(KeyError) as caught:
        tlsv.attn_subvalues(model, z_only, 1, by="neuron")
    assert "blocks.1.attn.hook_pattern" in str(caught.value)
    assert "blocks.1.attn.hook_v" in str(caught.value)
    with pytest.raises(KeyError, match=r"blocks\.1\.mlp\.hook_post"):
        tlsv.ffn_subvalues(model, z_only, 1)
    _, gemma = models["gemma2"].run_with_cache(batch, names_filter="blocks.1.attn.hook_z")
    with pytest.raises(KeyError, match=r"blocks\.1\.ln1_post\.hook_scale"):
        tlsv.attn_subvalues(models["gemma2"], gemma, 1)


@pytest.mark.any_release
@pytest.mark.parametrize("layer", [2, -1, 99])
def test_a_layer_out_of_range_is_refused(models, layer, batch):
    """The error names the layer and those that there are."""
    _, cache = models["llama"].run_with_cache(batch)
    for function in (tlsv.attn_subvalues, tlsv.ffn_subvalues):
        with pytest.raises(ValueError, match=f"layer {layer} is out of range.*0 to 1"):
            function(models["llama"], cache, layer)


@pytest.mark.any_release
def test_positions_and_neurons_out_of_range_are_refused(models, batch):
    """Out of range at either end, alone or in a list."""
    model = models["llama"]
    _, cache = model.run_with_cache(batch)
    for pos_slice in (7, -8, [0, 7]):
        with pytest.raises(ValueError, match=r"position -?[78] is out of range"):
            tlsv.attn_subvalues(model, cache, 1, pos_slice=pos_slice)
        with pytest.raises(ValueError, match=r"position -?[78] is out of range"):
            tlsv.ffn_subvalues(model, cache, 1, pos_slice=pos_slice)
    for neuron_slice in (48, -49, [0, 48]):
        with pytest.raises(ValueError, match=r"neuron -?4[89] is out of range"):
            tlsv.ffn_subvalues(model, cache, 1, neuron_slice=neuron_slice)


@pytest.mark.any_release
def test_sources_that_a_pattern_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the query, or to the last position that any head sees; of several layers, the most."""
    run = tlsv.trace(zoo.model("llama"), torch.arange(3, 10), 5, position=2).run
    assert (run.n_sources(0), run.n_sources(0, 1), run.n_sources()) == (3, 3, 3)
    patterns = torch.zeros(2, 1, 4, 7)
    patterns[0, 0, :, 1] = 1.0
    patterns[1, 0, 3, 5] = 0.5
    patterns[1, 0, 2, 4] = 0.5
    monkeypatch.setattr(run.activations, "pattern", lambda layer, position: patterns[layer])
    assert (run.n_sources(0), run.n_sources(1), run.n_sources(0, 1)) == (3, 6, 6)
    patterns[1, 0, 0, 6] = torch.nan  # what is no number is seen
    assert run.n_sources(1) == 7
