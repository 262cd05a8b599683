"""Architectures drawn at random from the whole grid keep the identities: sums, readout, exact top k.

Norm kind and place, parallel blocks, gates, grouped queries, biases, tied embeddings, rotary shares, soft caps,
multipliers, experts, latent attention, mixers, sizes: as the configurations of the tiny families have them.
"""

from typing import Any

import pytest
import torch
from helpers import zoo
from helpers.comparison import SUM_TOLERANCE, relative_error
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import tl_subvalues as tlsv

pytestmark = pytest.mark.slow

flag = st.booleans()
HEADS = st.sampled_from([(2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (6, 3)])  # query heads, key/value heads
MULTIPLIER = st.floats(0.25, 4.0).map(lambda x: round(x, 2))


@st.composite
def llama_like(draw: st.DrawFn, *, grouped: bool = True, wide: bool = True) -> dict[str, Any]:
    """Sizes in the words of Llama and most families after it."""
    heads, kv_heads = draw(HEADS)
    d_head = draw(st.sampled_from([4, 8, 10]))
    sizes = {
        "hidden_size": heads * d_head if not wide else draw(st.sampled_from([24, 48])),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.sampled_from([20, 48])),
        "num_hidden_layers": draw(st.integers(1, 3)),
    }
    if grouped:
        sizes["num_key_value_heads"] = kv_heads
    return {**sizes, "head_dim": d_head} if wide else sizes


@st.composite
def gpt2_like(draw: st.DrawFn, even: bool = False) -> dict[str, Any]:
    """Sizes in the words of GPT-2."""
    heads, d_head = draw(st.sampled_from([1, 2, 4])), 8 if even else draw(st.sampled_from([5, 8]))
    inner = draw(st.sampled_from([None, 20]))
    return {"n_embd": heads * d_head, "n_head": heads, "n_layer": draw(st.integers(1, 3)), "n_inner": inner}


def drawn(sizes: st.SearchStrategy[dict[str, Any]], **options: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of a configuration: sizes, and options."""
    return st.builds(lambda size, rest: {**size, **rest}, sizes, st.fixed_dictionaries(options))


PLAIN, WIDE, UNGROUPED = llama_like(wide=False), llama_like(), llama_like(grouped=False, wide=False)
MATCHED = UNGROUPED.map(lambda sizes: {**sizes, "num_key_value_heads": sizes["num_attention_heads"]})
LAYERS = st.builds(lambda layers: {"num_hidden_layers": layers}, st.integers(1, 3))
EXPERTS = {"num_experts_per_tok": st.integers(1, 3)}
FALCON = st.builds(
    lambda heads, layers: {"hidden_size": 8 * heads, "num_attention_heads": heads, "num_hidden_layers": layers},
    st.sampled_from([2, 4]),
    st.integers(1, 3),
)
ACTS = st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu"])
# Left out, for TransformerLens fails on them: Phi with norms on queries or with grouped queries, GPT-NeoX without
# attention biases, Nemotron and OLMo 2 with them (grouped queries, in compatibility mode).
ARCHITECTURES = {
    "gpt2": drawn(gpt2_like(), activation_function=st.sampled_from(["gelu_new", "relu"])),
    "gptj": drawn(gpt2_like(even=True), rotary_dim=st.sampled_from([4, 8])),
    "gpt_neox_parallel": drawn(UNGROUPED, use_parallel_residual=flag, tie_word_embeddings=flag),
    "falcon_alibi": drawn(FALCON, multi_query=flag, bias=flag, parallel_attn=flag, alibi=flag),
    "llama": drawn(WIDE, attention_bias=flag, mlp_bias=flag, tie_word_embeddings=flag, hidden_act=ACTS),
    "phi": drawn(MATCHED, partial_rotary_factor=st.sampled_from([0.5, 1.0])),
    "starcoder2": drawn(PLAIN, use_bias=flag, tie_word_embeddings=flag),
    "stablelm": drawn(PLAIN, use_qkv_bias=flag, qk_layernorm=flag, use_parallel_residual=flag),
    "nemotron": drawn(PLAIN, mlp_bias=flag),
    "gemma2": drawn(
        WIDE,
        attn_logit_softcapping=st.sampled_from([None, 2.0]),
        final_logit_softcapping=st.sampled_from([None, 3.0, 30.0]),
    ),
    "gemma3": drawn(WIDE),
    "cohere": drawn(PLAIN, logit_scale=MULTIPLIER, attention_bias=flag),
    "granite": drawn(PLAIN, residual_multiplier=MULTIPLIER, embedding_multiplier=MULTIPLIER, logits_scaling=MULTIPLIER),
    "olmo2": drawn(PLAIN, tie_word_embeddings=flag),
    "glm4": drawn(WIDE, attention_bias=flag),
    "mixtral": drawn(PLAIN, **EXPERTS, hidden_act=ACTS),
    "qwen2_moe": drawn(PLAIN, **EXPERTS, norm_topk_prob=flag, qkv_bias=flag),
    "granitemoe": drawn(PLAIN, **EXPERTS, residual_multiplier=MULTIPLIER, logits_scaling=MULTIPLIER),
    "gpt_oss": drawn(WIDE, **EXPERTS),
    "deepseek_v3": drawn(
        LAYERS,
        **EXPERTS,
        first_k_dense_replace=st.integers(0, 2),
        q_lora_rank=st.sampled_from([None, 6]),
        kv_lora_rank=st.sampled_from([8, 12]),
        v_head_dim=st.sampled_from([5, 10]),
        routed_scaling_factor=MULTIPLIER,
        norm_topk_prob=flag,
    ),
    "lfm2": drawn(st.just({}), layer_types=st.permutations(["conv", "full_attention"])),
}


@pytest.mark.few_families
@pytest.mark.parametrize("family", list(ARCHITECTURES))
@given(data=st.data(), compatibility=flag, seed=st.integers(0, 10**6), length=st.integers(1, 8))
# Ten of each family, 210 in all. Shrinking a failure would boot hundreds of models.
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)
def test_every_architecture_keeps_the_identities(family, data, compatibility, seed, length):
    """Parts sum to outputs, outputs to the residual stream, which reads as the model's output; top k is exact."""
    architecture = data.draw(ARCHITECTURES[family], label="architecture")
    model = zoo.bridge(family, seed=seed, compatibility=compatibility, **architecture)
    tokens = torch.randint(3, zoo.VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))
    target = data.draw(st.integers(0, zoo.VOCAB - 1), label="target")
    position = data.draw(st.integers(0, length - 1), label="position")
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    own = logits[0, position].double().log_softmax(-1)
    trace = tlsv.trace(model, tokens, target, position=position, cache=cache)
    assert trace.log_prob == pytest.approx(float(own[target]), abs=1e-4)

    stream = cache["blocks.0.hook_resid_pre"].double()
    for layer, block in enumerate(model.blocks):
        outputs = []
        if "attn" in block._modules:
            outputs.append(cache[f"blocks.{layer}.hook_attn_out"].double())
            for by in ("head", "head_position", "neuron"):
                stack = tlsv.attn_subvalues(model, cache, layer, by=by, pos_slice=None, incl_bias=True)
                assert relative_error(stack.sum(0), outputs[-1]) < SUM_TOLERANCE
        if "conv" in block._modules:
            outputs.append(cache[f"blocks.{layer}.conv.hook_out"].double())
        outputs.append(cache[f"blocks.{layer}.hook_mlp_out"].double())
        stack = tlsv.ffn_subvalues(model, cache, layer, pos_slice=None, incl_bias=True)
        assert relative_error(stack.sum(0), outputs[-1]) < SUM_TOLERANCE
        stream = stream + sum(outputs)
    assert relative_error(cache[f"blocks.{layer}.hook_resid_post"], stream) < SUM_TOLERANCE

    scale = cache["ln_final.hook_scale"][:, position]
    readout = tlsv.Readout(model, scale=scale)
    final = cache[f"blocks.{layer}.hook_resid_post"][:, position]
    assert torch.allclose(readout.log_probs(final)[0].double(), own, rtol=0, atol=1e-4)
    last = cache[f"blocks.{layer}.hook_mlp_out"][:, position]
    step = tlsv.log_prob_increase(readout, final - last, last[None], target)
    before = readout.log_prob(final - last, target)
    assert float(step) == pytest.approx(float(own[target] - before), abs=1e-3)
    assert trace.layers().log_prob_increase.iloc[-1] == pytest.approx(float(step), abs=1e-3) or parallel(model)

    largest = data.draw(flag, label="largest")
    table_of = data.draw(st.sampled_from([trace.ffn_neurons, trace.attn_neurons]), label="table")
    whole, top = table_of(top=None, largest=largest), table_of(top=4, largest=largest)
    assert list(top.log_prob_increase) == pytest.approx(list(whole.log_prob_increase[:4]), abs=1e-4)


def parallel(model: Any) -> bool:
    """Whether attention and FFN read the same input, so that the last step does not start before the FFN alone."""
    return "blocks.0.hook_resid_mid" not in model.hook_dict
