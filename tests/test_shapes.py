"""Whatever the shape of the model and the prompt: the identities hold, and importance equals brute force."""

from typing import Any

import pytest
import torch
from helpers import zoo
from helpers.brute_force import BruteForce
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_subvalues as tlsv

pytestmark = [pytest.mark.slow, pytest.mark.any_release]

UNITS = ("sublayer", "head", "head_position", "attn_neuron", "ffn_neuron")
TABLES = ("layers", "heads", "head_positions", "attn_neurons", "ffn_neurons")


@st.composite
def llama_like(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Grouped queries, heads of any even width, biases or not, tied or not."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return "llama", {
        "hidden_size": groups * per_group * draw(st.sampled_from([2, 3, 5])),
        "num_attention_heads": groups * per_group,
        "num_key_value_heads": groups,
        "head_dim": draw(st.sampled_from([2, 4, 6])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 30)),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def gemma2_like(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Norms after the sublayers, a soft cap on the logits or none."""
    _, shape = draw(llama_like())
    cap = draw(st.sampled_from([None, 1.0, 8.0]))
    del shape["mlp_bias"]
    return "gemma2", {**shape, "final_logit_softcapping": cap, "query_pre_attn_scalar": shape["head_dim"]}


@st.composite
def gpt2_like(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Layer norms, biases everywhere, one width of heads."""
    heads = draw(st.integers(1, 4))
    return "gpt2", {
        "n_head": heads,
        "n_embd": heads * draw(st.sampled_from([2, 3, 5])),
        "n_layer": draw(st.integers(1, 3)),
        "n_inner": draw(st.integers(1, 30)),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def neox_like(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Attention and FFN side by side, or one after the other."""
    heads = draw(st.integers(1, 4))
    return draw(st.sampled_from(["gpt_neox_parallel", "gpt_neox_sequential"])), {
        "num_attention_heads": heads,
        "hidden_size": heads * draw(st.sampled_from([4, 8])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 30)),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, BruteForce, torch.Tensor, int, int]:
    """A random model, the reference of its run, a prompt, a position and a target."""
    family, shape = draw(st.one_of(llama_like(), gemma2_like(), gpt2_like(), neox_like()))
    compatibility, seed = draw(st.booleans()), draw(st.integers(0, 9))
    tokens = torch.tensor([draw(st.lists(st.integers(3, zoo.VOCAB - 1), min_size=1, max_size=9))])
    model = zoo.bridge(family, seed=seed, compatibility=compatibility, **shape)
    position, target = draw(st.integers(0, tokens.shape[1] - 1)), draw(st.integers(0, zoo.VOCAB - 1))
    return model, BruteForce(model, family, tokens, folded=compatibility), tokens, position, target


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> bool:
    """Equal to within `tolerance` of the largest expected entry."""
    return bool((found.double() - expected).abs().max() <= tolerance * expected.abs().max())


RANDOM_MODELS = settings(max_examples=40, deadline=None, derandomize=True, report_multiple_bugs=False)


@RANDOM_MODELS
@given(problem=problems())
def test_parts_sum_to_the_whole(problem: tuple[Any, BruteForce, torch.Tensor, int, int]) -> None:
    """Sources sum to their head, indices to their head and source, and everything with the bias to the sublayer."""
    model, expected, tokens, position, _ = problem
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    n_positions = tokens.shape[1]
    for layer in range(expected.n_layers):
        attn = cache[f"blocks.{layer}.hook_attn_out"][:, position].double()
        stacks = {
            by: tlsv.attn_subvalues(model, cache, layer, by=by, pos_slice=position, incl_bias=True)
            for by in ("head", "head_position", "neuron")
        }
        for stack in stacks.values():
            assert close(stack.sum(0), attn)
        heads, by_source, neurons = (stack[:-1] for stack in stacks.values())
        n_heads, d_model = len(heads), heads.shape[-1]
        by_source = by_source.reshape(n_heads, n_positions, d_model)
        neurons = neurons.reshape(n_positions, n_heads, -1, d_model)
        largest = float(heads.abs().max())
        assert torch.allclose(by_source.sum(1), heads[:, 0], rtol=0, atol=2e-5 * largest)
        assert torch.allclose(neurons.sum(2).transpose(0, 1), by_source, rtol=0, atol=2e-5 * largest)
        assert not by_source[:, position + 1 :].any()  # nothing comes from behind the query
        mlp = cache[f"blocks.{layer}.hook_mlp_out"][:, position].double()
        assert close(tlsv.ffn_subvalues(model, cache, layer, pos_slice=position, incl_bias=True).sum(0), mlp)


@RANDOM_MODELS
@given(problem=problems(), scale=st.sampled_from(["frozen", "recomputed"]))
def test_readout_and_increases_equal_brute_force(
    problem: tuple[Any, BruteForce, torch.Tensor, int, int], scale: str
) -> None:
    """The trace gives the model's own log-prob and rank, and the right increases for every label."""
    model, expected, tokens, position, target = problem
    trace = tlsv.trace(model, tokens, target, position=position, scale=scale)
    own = expected.own_log_probs[position]
    assert trace.log_prob == pytest.approx(float(own[target]), abs=1e-4)
    assert abs(trace.rank - 1 - int((own > own[target]).sum())) <= int(((own - own[target]).abs() < 1e-4).sum()) - 1
    for unit, name in zip(UNITS, TABLES, strict=True):
        reference = expected.increases(unit, position, target, scale)
        table = trace.layers() if name == "layers" else getattr(trace, name)(top=None)
        assert sorted(table.label) == sorted(reference)
        found = torch.tensor(table[["log_prob_increase", "prob_increase"]].to_numpy(dtype=float))
        wanted = torch.tensor([reference[label] for label in table.label], dtype=torch.float64)
        assert torch.allclose(found, wanted, rtol=0, atol=1e-4)
