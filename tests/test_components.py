"""Directions behind labels, and what they become behind a head."""

import pytest
import torch
from helpers import zoo
from helpers.brute_force import BruteForce, FrozenNorm, LinearMap

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2", "granite"])
def test_vocabulary_through_a_head(family: str, tokens: torch.Tensor) -> None:
    """An early neuron's row behind a later head's norm, W_V and W_O, read in vocabulary space."""
    model = zoo.bridge(family)
    trace = tlsv.trace(model, tokens, 5, position=5)
    brute = BruteForce(model, family, tokens)
    row = brute._carry(0, "mlp", 2, brute._maps[0, "mlp"].matrix[7][None])[0]  # where the head reads it
    kv_heads, d_head = brute.cache["blocks.1.attn.hook_v"].shape[1:]
    values = LinearMap(lambda x: model.blocks[1].attn.v(x)[..., : kv_heads * d_head], brute.d_model).matrix
    x = brute.residual(1, "attn", 2)
    if family != "olmo2":  # reads the raw residual stream
        norm = FrozenNorm(model.blocks[1].ln1, brute.d_model)
        row = row @ norm.matrix / norm.scale(x[None])[0, 0]
    group = 2 * kv_heads // 4
    z = row @ values[:, group * d_head : (group + 1) * d_head]
    written = brute._carry(1, "attn", 5, (z @ brute._maps[1, "attn"].matrix[2 * d_head : 3 * d_head])[None])[0]
    final = brute.final_norm
    expected = (written @ final.matrix / final.scale(brute.final(5)[None])[0, 0]).float()
    bs_values = model.unembed(expected[None]) - model.unembed(torch.zeros_like(expected)[None])
    if family == "granite":
        bs_values = bs_values / model.original_model.config.logits_scaling
    for through in ("L1H2D2@2", "L1H2@2"):
        table = trace.vocabulary("L0N7", k=5, through=through)
        ids = torch.tensor(table["token_id"].tolist())
        assert table["bs_value"].to_numpy() == pytest.approx(
            bs_values.detach().flatten()[ids].numpy(), abs=1e-4 * float(bs_values.detach().abs().max())
        )
        assert table["token_id"].iloc[0] == int(bs_values.argmax())


def test_a_source_is_read_where_the_head_reads_it(tokens: torch.Tensor) -> None:
    """A sublayer or head that feeds another head does so with what it adds at the source position."""
    model = zoo.model("llama")
    trace = tlsv.trace(model, tokens, 5, position=5)
    there = tlsv.trace(model, tokens, 5, position=2)
    for source in ("0_mlp_out", "L0H1"):
        fed = trace.vocabulary(source, k=61, through="L1H2@2").query("side == 'top'")
        read = there.vocabulary(source, k=61, through="L1H2").query("side == 'top'")
        # Up to the final norm's scale, one number.
        ratio = fed.set_index("token_id")["bs_value"] / read.set_index("token_id")["bs_value"]
        assert ratio.std() < 1e-3 * abs(ratio.mean())


@pytest.mark.parametrize(
    ("through", "message"),
    [
        ("L1N5", "names a head"),
        ("L1H9", "head 9 is not below 4"),
        ("L1H0@6", "no head reads position 6"),
        ("1_attn_out", "names a head"),
        ("L7H0", "out of range"),
        ("L1H1D99@2", "dim 99 is not below 8"),
    ],
)
def test_refusals(through: str, message: str, tokens: torch.Tensor) -> None:
    trace = tlsv.trace(zoo.model("llama"), tokens, 5, position=5)
    with pytest.raises(ValueError, match=message):
        trace.vocabulary("L0N7", through=through)


def test_only_a_later_head_can_be_fed(tokens: torch.Tensor) -> None:
    """A component that comes after the head, or beside it, feeds it nothing."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    for label in ("L1N3", "L0N3", "L0H1"):
        with pytest.raises(ValueError, match="does not read"):
            trace.vocabulary(label, through="L0H3")
