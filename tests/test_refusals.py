"""What is refused, what the refusal says, and that what it advises works. Arguments: test_tokens.py."""

import functools

import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues import UnsupportedModelError
from tl_subvalues.model_view import view_of

TARGET = 9


@pytest.fixture
def model():
    return zoo.model("llama")


def refusal(model, tokens, error=ValueError, **keywords) -> str:
    with pytest.raises(error) as caught:
        tlsv.trace(model, tokens, TARGET, **keywords)
    return str(caught.value)


def change(family: str, name: str, value: float):
    """A model with one entry of one weight replaced."""
    model = zoo.bridge(family)
    with torch.no_grad():
        functools.reduce(getattr, name.split("."), model.original_model).view(-1)[3] = value
    return model


# Caches.


def test_a_cache_that_lacks_hooks_lists_them_all(model, tokens):
    """One KeyError names every missing hook and the call that caches them, which works."""
    _, whole = model.run_with_cache(tokens)
    needed = [name for name in view_of(model).hooks() if name in whole]
    kept = "blocks.0.attn.hook_z"
    _, cache = model.run_with_cache(tokens, names_filter=kept)
    message = refusal(model, tokens, KeyError, cache=cache)
    missing = {name for name in needed if name != kept}
    assert len(missing) > 12
    assert missing <= {word.strip(",;'\"") for word in message.split()}
    assert f"{kept}," not in message
    assert "run_with_cache(tokens) without a names_filter" in message
    own = tlsv.trace(model, tokens, TARGET)
    given = tlsv.trace(model, tokens, TARGET, cache=whole)
    assert own.log_prob == pytest.approx(given.log_prob, abs=1e-5)
    difference = own.ffn_neurons().set_index("label") - given.ffn_neurons().set_index("label")
    assert difference.log_prob_increase.abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "cohere"])
def test_a_cache_without_one_hook_is_refused_whichever_it_is(family, tokens):
    """Every hook that a trace reads is required, post-norm scales and all."""
    model = zoo.model(family)
    needed = view_of(model).hooks()
    assert any("ln1_post" in name for name in needed) == (family == "gemma2")
    for lost in needed:
        _, cache = model.run_with_cache(tokens, names_filter=[name for name in needed if name != lost])
        assert lost in refusal(model, tokens, KeyError, cache=cache)


def test_a_cache_of_another_prompt_is_refused(model, tokens):
    """Same length or not, wherever the prompts differ; cache=None, which the message advises, works."""
    for at in (0, 6):
        other = tokens.clone()
        other[0, at] = 3 + (tokens[0, at] - 2) % 58  # another word
        message = refusal(model, tokens, cache=model.run_with_cache(other)[1])
        assert "another prompt" in message
        assert "cache=None" in message
        assert f"position {at}" in message
    for other in (tokens[:, :5], torch.cat([torch.zeros(1, 1).long(), tokens], 1)):
        message = refusal(model, tokens, cache=model.run_with_cache(other)[1])
        assert f"{other.shape[1]} positions" in message
        assert "7 tokens" in message


def test_a_cache_of_some_positions_is_refused(model, tokens):
    """A cache made with pos_slice lacks the rest of the prompt, and the message mentions pos_slice."""
    _, cache = model.run_with_cache(tokens, pos_slice=-1)
    assert "pos_slice" in refusal(model, tokens, cache=cache)


def test_a_cache_of_several_prompts_is_refused(model, tokens):
    """One prompt at a time; a cache without batch axis is one prompt."""
    _, cache = model.run_with_cache(tokens.repeat(3, 1))
    message = refusal(model, tokens, cache=cache)
    assert "batch of 3" in message
    assert "one by one" in message
    alone = tlsv.trace(model, tokens, TARGET, cache=model.run_with_cache(tokens, remove_batch_dim=True)[1])
    assert alone.log_prob == pytest.approx(tlsv.trace(model, tokens, TARGET).log_prob, abs=1e-5)


def test_a_cache_of_another_model_is_refused(model, tokens):
    """A cache whose numbers are not this model's does not add up, or belongs to another prompt."""
    _, cache = zoo.bridge("llama", seed=1).run_with_cache(tokens)
    refusal(model, tokens, cache=cache)
    _, cache = model.run_with_cache(tokens)
    with torch.no_grad():
        model.original_model.model.layers[1].mlp.down_proj.weight.mul_(1.1)
    assert "layer 1" in refusal(model, tokens, UnsupportedModelError, cache=cache)


# States of a model.


def test_training_mode_is_refused(model, tokens):
    """Dropout would change every run; model.eval(), which the message advises, lets it through."""
    if not zoo.has_bridge():
        pytest.skip("a HookedTransformer is in training mode when it is built, and has no dropout")
    for module in (model, model.original_model):
        module.train()
        assert "model.eval()" in refusal(model, tokens)
        model.eval()
        assert tlsv.trace(model, tokens, TARGET)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("model.embed_tokens.weight", "layer 0"),
        ("model.layers.0.mlp.down_proj.weight", "layer 1"),
        ("model.layers.0.self_attn.o_proj.weight", "layer"),
        ("model.layers.1.mlp.down_proj.weight", "after the last layer"),
    ],
)
def test_nan_in_the_residual_stream_is_named(tokens, weight, place, value):
    """NaN or infinity in any weight that writes is called that, with its place; not a fault of the decomposition."""
    model = change("llama", weight, value)
    tokens = torch.zeros_like(tokens)  # the embedding that was changed
    with pytest.raises(ValueError, match="NaN or infinite") as caught:
        tlsv.trace(model, tokens, TARGET)
    assert not isinstance(caught.value, UnsupportedModelError)
    assert place in str(caught.value)


@pytest.mark.parametrize("weight", ["model.norm.weight", "lm_head.weight"])
def test_nan_in_the_readout_is_named(tokens, weight):
    """NaN in the final norm or the unembedding is called NaN."""
    with pytest.raises(ValueError, match=r"(?i)nan"):
        tlsv.trace(change("llama", weight, float("nan")), tokens, TARGET)


def scaled(activation, hook):
    return activation * 1.5


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize(
    ("hook", "names"),
    [
        ("blocks.0.hook_attn_out", "layer 0"),
        ("blocks.0.hook_mlp_out", "layer 0"),
        ("blocks.0.hook_resid_mid", "layer 0"),
        ("blocks.1.hook_resid_pre", "layer 0"),
        ("blocks.1.hook_resid_post", "layer 1"),
        ("ln_final.hook_normalized", "final norm"),
        ("unembed.hook_out", "final norm"),
    ],
)
def test_a_hook_that_breaks_the_sums_is_refused(family, hook, names, tokens):
    """Where a user's hook edits a sum behind its parts, nothing adds up: refused by layer."""
    model = zoo.bridge(family)
    with model.hooks(fwd_hooks=[(hook, scaled)]):
        assert names in refusal(model, tokens, UnsupportedModelError)
    assert tlsv.trace(model, tokens, TARGET)


@pytest.mark.parametrize("hook", ["attn.hook_v", "attn.hook_pattern", "attn.hook_z", "mlp.hook_post"])
def test_a_hook_that_edits_parts_is_decomposed_right_or_refused(model, hook, tokens):
    """Edited parts either still add up to the output that they made, unit by unit, or that unit is refused."""
    with model.hooks(fwd_hooks=[(f"blocks.0.{hook}", scaled)]):
        for unit in ("head", "head_position", "attn_neuron", "ffn_neuron"):
            try:
                trace = tlsv.trace(model, tokens, TARGET)
                for site in trace.run.sites:
                    if (site.sublayer == "mlp") == (unit == "ffn_neuron"):
                        parts = trace.run.parts(site, unit).subvalues
                        whole = parts.vectors(torch.arange(len(parts))).sum(0)
                        assert (whole - site.output).abs().max() < 1e-4, (unit, site.layer)
            except UnsupportedModelError as error:
                assert "layer 0" in str(error)  # noqa: PT017


# Models.


@pytest.mark.parametrize(
    "thing", [object(), torch.nn.Linear(2, 2), None, "gpt2"], ids=lambda thing: type(thing).__name__
)
def test_what_is_no_model_is_refused(thing, tokens):
    """The message names the type and how to boot a model; of a name, how to load it."""
    message = refusal(thing, tokens, UnsupportedModelError)
    assert type(thing).__name__ in message
    assert ("tlsv.load_model('gpt2')" if thing == "gpt2" else "boot_transformers") in message


def test_a_hugging_face_model_is_refused_with_the_way_to_boot_it(tokens):
    """What the message advises, boot_transformers(name, hf_model=model), gives a model that works."""
    hf = zoo.hf_model("llama")
    message = refusal(hf, tokens, UnsupportedModelError)
    assert "LlamaForCausalLM" in message
    assert "boot_transformers(name, hf_model=model)" in message
    booted = zoo.bridge_class().boot_transformers("llama", hf_model=hf, tokenizer=zoo.tokenizer(), device="cpu")
    assert tlsv.trace(booted, tokens, TARGET)


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_a_model_without_a_list_of_blocks_is_refused(name, tokens):
    """Encoder-decoders have no single residual stream: refused by name, whatever is asked."""
    model = zoo.encoder_decoder(name)
    message = refusal(model, tokens, UnsupportedModelError)
    assert f"{name}ForConditionalGeneration" in message
    assert "decoder-only" in message
    with pytest.raises(UnsupportedModelError, match="list of blocks"):
        tlsv.Readout(model, scale="recomputed")


@pytest.mark.parametrize("unknown", ["class", "layout"])
def test_a_mixture_of_an_unknown_kind_is_traced_but_for_its_neurons(unknown, tokens):
    """Layers, heads and attention neurons work; FFN neurons are refused, naming the model and every layer."""
    model = zoo.bridge("mixtral")
    for block in model.blocks:
        mixture = block.mlp.original_component
        kind = type(mixture)
        if unknown == "class":
            mixture.__class__ = type("OtherSparseMoeBlock", (kind,), {})
        else:
            mixture.__class__ = type(kind.__name__, (kind,), {"forward": lambda self, x: x.flip(-1)})
            mixture.experts = torch.nn.ModuleList([torch.nn.Linear(32, 48)])  # as transformers 4 had it
    trace = tlsv.trace(model, tokens, TARGET)
    for table in (trace.heads(), trace.head_positions(), trace.attn_neurons()):
        assert len(table) > 0
    with pytest.raises(UnsupportedModelError) as caught:
        trace.ffn_neurons()
    for words in (model.cfg.architecture, "SparseMoeBlock", "layer 0", "layers 1", "trace.layers()"):
        assert words in str(caught.value)
    assert len(trace.layers()) == 4  # what it advises
    with pytest.raises(UnsupportedModelError, match="layer 1"):
        tlsv.ffn_subvalues(model, trace.cache, 1)
    for label in ("L0N5", "L0E1N5"):
        with pytest.raises(UnsupportedModelError, match="layer 0"):
            trace.vocabulary(label)


@pytest.mark.hooked
def test_a_hooked_transformers_experts_are_refused_by_name(tokens):
    """HookedTransformer's mixtures of experts are traced but for their neurons; the same model as a bridge has all."""
    model = zoo.hooked("rotary_gated_grouped", num_experts=4, experts_per_token=2)
    trace = tlsv.trace(model, tokens, TARGET)
    assert len(trace.layers()) == 4
    assert len(trace.attn_neurons()) > 0
    with pytest.raises(UnsupportedModelError, match=r"layer 0 .*MoE"):
        trace.ffn_neurons()


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mamba", "no attention sublayer"),
        ("rwkv", "no attention sublayer"),
        ("opt_projected", "project_out"),
        ("opt_post_norm", "own run_with_cache fails.*ValueError"),
        pytest.param("gemma4", "Gemma4RMSNorm", marks=pytest.mark.slow),
        ("openai_gpt", "norm after the addition"),
        ("modernbert_decoder", "prediction_head"),
    ],
)
def test_other_models_are_refused_by_name(family, reason, tokens):
    """Refused with architecture and reason; where the message says that some calls still work, they do."""
    model = zoo.model(family)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        tlsv.trace(model, tokens, TARGET)
    message = str(caught.value)
    assert model.cfg.architecture in message
    for function in (tlsv.attn_subvalues, tlsv.ffn_subvalues):
        if function.__name__ in message:
            _, cache = model.run_with_cache(tokens)
            done = [works(function, model, cache, layer) for layer in range(len(model.blocks))]
            assert any(done), f"the message advises {function.__name__}, which works on no layer"


def works(function, model, cache, layer: int) -> bool:
    """Whether a stack comes out, and adds up; a refusal must not advise a trace that is refused as well."""
    try:
        stack = function(model, cache, layer, incl_bias=True)
    except UnsupportedModelError as error:
        assert f"layer {layer}" in str(error)  # noqa: PT017
        if "trace.layers()" in str(error):
            tlsv.trace(model, [3, 4, 5], TARGET).layers()
        return False
    name = "attn" if function is tlsv.attn_subvalues else "mlp"
    torch.testing.assert_close(stack.sum(0), cache[f"blocks.{layer}.hook_{name}_out"][:, -1], atol=5e-5, rtol=1e-4)
    return True


# What a trace leaves behind.


def test_a_trace_leaves_nothing_behind(model, tokens):
    """No hooks, no gradients, no changed weight or requires_grad, the user's own hook and mode still there."""
    seen = []
    model.blocks[0].hook_attn_out.add_hook(lambda activation, hook: seen.append(hook.name))
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    state = hooks_of(model)
    with torch.enable_grad():
        trace = tlsv.trace(model, tokens, TARGET)
        for table in (trace.layers(), trace.heads(), trace.head_positions(), trace.attn_neurons(), trace.ffn_neurons()):
            assert len(table) > 0
        trace.vocabulary("L1N3")
        assert torch.is_grad_enabled()
        assert not any(value.requires_grad for value in trace.cache.values())
    assert seen
    assert hooks_of(model) == state
    assert not model.training
    for name, parameter in model.named_parameters():
        was, required = before[name]
        assert torch.equal(parameter, was)
        assert (parameter.requires_grad, parameter.grad) == (required, None)


@pytest.mark.parametrize("bad", [{"position": 50}, {"cache": {}}], ids=["position", "cache"])
def test_a_refused_trace_leaves_no_hooks(model, tokens, bad):
    """Nor does one that was refused on the way."""
    state = hooks_of(model)
    with pytest.raises((ValueError, KeyError)):
        tlsv.trace(model, tokens, TARGET, **bad)
    assert hooks_of(model) == state


def hooks_of(model) -> dict[str, tuple[int, int]]:
    """How many hooks TransformerLens and torch have at each hook point."""
    return {name: (len(point.fwd_hooks), len(point._forward_hooks)) for name, point in model.hook_dict.items()}
