"""Further families, briefly: each is decomposed exactly, by its sums and its readout, or refused by name."""

import re

import pytest
import torch
from helpers import zoo
from helpers.comparison import SUM_TOLERANCE, TARGET, relative_error
from helpers.further_families import FURTHER, FURTHER_HEADS_ONLY, FURTHER_REFUSED

import tl_subvalues as tlsv

pytestmark = pytest.mark.slow

# What each refusal says.
REASONS = {
    "opt_350m": "project_out",
    "mamba2": "no attention sublayer",
    "nemotron_h": "no attention sublayer",
    "recurrent_gemma": "no attention sublayer",
    "jetmoe": "such as a mixture of heads",
    "granitemoehybrid": "shared_mlp, moe",
}


@pytest.mark.parametrize("family", [*FURTHER, *FURTHER_HEADS_ONLY])
def test_a_further_family_is_exact(family, tokens):
    """Parts and biases sum to every sublayer's output at every position; the trace's own checks pass."""
    model = zoo.bridge(family)
    trace = tlsv.trace(model, tokens, TARGET)
    own = model(tokens)[0, -1].log_softmax(-1)[TARGET]
    assert trace.log_prob == pytest.approx(float(own), abs=1e-4)
    assert len(trace.heads()) > 0
    assert trace.ffn_neurons(top=None).log_prob_increase.notna().all()
    if family in FURTHER_HEADS_ONLY:
        with pytest.raises(tlsv.UnsupportedModelError, match="by source position"):
            trace.head_positions()
    else:
        assert len(trace.head_positions()) > 0
    kinds = ["head"] if family in FURTHER_HEADS_ONLY else ["head", "head_position", "neuron"]
    for layer in range(len(model.blocks)):
        stack = tlsv.ffn_subvalues(model, trace.cache, layer, pos_slice=None, incl_bias=True)
        assert relative_error(stack.sum(0), trace.cache[f"blocks.{layer}.hook_mlp_out"].double()) < SUM_TOLERANCE
        for by in kinds if "attn" in model.blocks[layer]._modules else []:
            stack = tlsv.attn_subvalues(model, trace.cache, layer, by=by, pos_slice=None, incl_bias=True)
            assert relative_error(stack.sum(0), trace.cache[f"blocks.{layer}.hook_attn_out"].double()) < SUM_TOLERANCE


@pytest.mark.parametrize("family", FURTHER_REFUSED)
def test_a_further_family_is_refused_by_name(family, tokens):
    """The message names the architecture and the reason."""
    model = zoo.bridge(family)
    with pytest.raises(tlsv.UnsupportedModelError, match=re.escape(REASONS[family])) as caught:
        tlsv.trace(model, tokens, TARGET)
    assert FURTHER_REFUSED[family][2] in str(caught.value)


def test_half_precision_runs_of_all_mixtures_are_routed_alike(tokens):
    """In bfloat16, where routers' logits often tie, no family's routing differs from the run's."""
    for family in zoo.MIXTURES:
        model = zoo.bridge(family, dtype=torch.bfloat16)
        for seed in range(3):
            prompt = torch.randint(3, zoo.VOCAB, (1, 20), generator=torch.Generator().manual_seed(seed))
            tlsv.trace(model, prompt, TARGET, position=5 * seed)
