"""Directions behind labels, and what they become behind a head."""

import pytest
import torch
import zoo
from brute_force import BruteForce, FrozenNorm, LinearMap

import tl_subvalues as tlsv


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2", "granite"])
def test_vocabulary_through_a_head(family: str, tokens: torch.Tensor) -> None:
    """An early neuron's row behind a later head's norm, W_V and W_O, read in vocabulary space."""
    model = zoo.bridge(family)
    trace = tlsv.trace(model, tokens, 5, position=5)
    brute = BruteForce(model, family, tokens)
    row = brute._carry(0, "mlp", 5, brute._maps[0, "mlp"].matrix[7][None])[0]
    kv_heads, d_head = brute.cache["blocks.1.attn.hook_v"].shape[1:]
    values = LinearMap(lambda x: model.blocks[1].attn.v(x)[..., : kv_heads * d_head], brute.d_model).matrix
    x = brute.residual(1, "attn", 2)
    if family != "olmo2":  # reads the raw residual stream
        norm = FrozenNorm(model.blocks[1].ln1, brute.d_model)
        row = row @ norm.matrix / norm.scale(x[None])[0, 0]
    group = 3 * kv_heads // 4
    z = row @ values[:, group * d_head : (group + 1) * d_head]
    written = brute._carry(1, "attn", 5, (z @ brute._maps[1, "attn"].matrix[3 * d_head : 4 * d_head])[None])[0]
    final = brute.final_norm
    expected = (written @ final.matrix / final.scale(brute.final(5)[None])[0, 0]).float()
    bs_values = model.unembed(expected[None]) - model.unembed(torch.zeros_like(expected)[None])
    if family == "granite":
        bs_values = bs_values / model.original_model.config.logits_scaling
    for through in ("L1H3D2@2", "L1H3@2"):
        table = trace.vocabulary("L0N7", k=5, through=through)
        ids = torch.tensor(table["token_id"].tolist())
        assert table["bs_value"].to_numpy() == pytest.approx(
            bs_values.detach().flatten()[ids].numpy(), abs=1e-4 * float(bs_values.detach().abs().max())
        )
        assert table["token_id"].iloc[0] == int(bs_values.argmax())
    # Without a source position the scale is that of the trace's position, which changes no order.
    assert trace.vocabulary("L0N7", through="L1H3")["token_id"].tolist()[:5] == table["token_id"].tolist()[:5]


@pytest.mark.parametrize(
    ("through", "message"),
    [
        ("L1N5", "names a head"),
        ("L1H9", "there are 4 heads"),
        ("L1H0@6", "no head reads position 6"),
        ("1_attn_out", "names a head"),
        ("L7H0", "out of range"),
    ],
)
def test_refusals(through: str, message: str, tokens: torch.Tensor) -> None:
    trace = tlsv.trace(zoo.bridge("llama"), tokens, 5, position=5)
    with pytest.raises(ValueError, match=message):
        trace.vocabulary("L0N7", through=through)


def test_only_a_later_head_can_be_fed(tokens: torch.Tensor) -> None:
    """A component that comes after the head, or beside it, feeds it nothing."""
    trace = tlsv.trace(zoo.bridge("llama"), tokens, 5)
    for label in ("L1N3", "L0N3", "L0H1"):
        with pytest.raises(ValueError, match="does not read"):
            trace.vocabulary(label, through="L0H3")
