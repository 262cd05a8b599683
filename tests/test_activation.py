"""Activation scores against norms and projections that are called, and the sums that they must give."""

import itertools
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from helpers import zoo
from helpers.brute_force import PARALLEL, BruteForce, FrozenNorm, LinearMap, call

import tl_subvalues as tlsv

BYS = ["sublayer", "head", "head_position", "ffn_neuron"]
# Their sublayers read the raw residual stream: the only norms in a block stand behind the sublayers.
WITHOUT_PRE_NORM = {"olmo2", "olmo3", "exaone4"}
# Parallel blocks whose FFN reads through the attention's norm.
ONE_NORM = PARALLEL - {"gpt_neox_parallel", "parallel"}


class Reference:
    """Scores from first principles: components by brute force, norms and projections by calling them."""

    def __init__(self, model: Any, family: str, tokens: torch.Tensor) -> None:
        self.brute, self.model, self.family = BruteForce(model, family, tokens), model, family

    def norm(self, layer: int, sublayer: str) -> FrozenNorm | None:
        if self.family in WITHOUT_PRE_NORM:
            return None
        block = self.model.blocks[layer]
        return FrozenNorm(block.ln1 if sublayer == "attn" or self.family in ONE_NORM else block.ln2, self.brute.d_model)

    def components(self, layer: int, sublayer: str, position: int, by: str) -> dict[str, torch.Tensor]:
        """Label -> vector of all that the sublayer reads."""
        cache, found = self.brute.cache, {}
        found["embed"] = cache["hook_embed"][position]
        if self.family in ("xglm", "granite"):  # positions without a hook; 3.9 hooks what comes before a multiplier
            found["embed"] = cache["blocks.0.hook_resid_pre"][position]
        if "hook_pos_embed" in cache:
            found["pos_embed"] = cache["hook_pos_embed"][position]
        taken_apart = {"head": "attn", "head_position": "attn", "ffn_neuron": "mlp"}.get(by)
        for number in range(layer + 1):
            for kind in ("attn", "mlp"):
                sequential = sublayer == "mlp" and kind == "attn" and self.family not in PARALLEL
                if number == layer and not sequential:
                    continue
                if kind == taken_apart:
                    found |= self.brute.parts(by, number, position)
                    if (bias := self.brute.bias(number, kind, position)).any():
                        found[f"{number}_{kind}_bias"] = bias
                else:
                    found[f"{number}_{kind}_out"] = self.brute.output(number, kind, position)
        return found

    def reading(
        self, layer: int, sublayer: str, position: int, project: LinearMap, column: int
    ) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
        """What a projection's column reads of a vector, and what it adds whatever it reads."""
        norm, x = self.norm(layer, sublayer), self.brute.residual(layer, sublayer, position)
        weights, bias = project.matrix[:, column], project.bias[column]
        if norm is None:
            return lambda vector: vector @ weights, bias
        return (lambda vector: vector @ norm.matrix @ weights / norm.scale(x[None])[0, 0]), bias + norm.bias @ weights


def compare(table: Any, column: str, reads: Callable, bias: torch.Tensor, components: dict[str, torch.Tensor]) -> None:
    """Every row of a column is what the reference reads of that component."""
    ours = dict(zip(table["label"], table[column], strict=True))
    assert set(ours) == {*components, "bias"}
    theirs = {label: float(reads(vector)) for label, vector in components.items()} | {"bias": float(bias)}
    size = max(map(abs, theirs.values()))
    assert max(abs(ours[label] - theirs[label]) for label in theirs) < 2e-5 * size


def families() -> list[Any]:
    slow = {"default": sorted(zoo.DENSE), "compat": ["gpt2", "llama", "gemma2", "olmo2", "phi", "gpt_neox_parallel"]}
    return [pytest.param(family, mode == "compat", id=f"{family}-{mode}") for mode in slow for family in slow[mode]]


@pytest.mark.few_families
@pytest.mark.parametrize(("family", "compatibility"), families())
def test_ffn_neurons(family: str, compatibility: bool, tokens: torch.Tensor) -> None:
    """A neuron of the last layer at a middle position, by every kind of component."""
    compare_ffn_neuron(zoo.bridge(family, compatibility=compatibility), family, tokens)


def test_biases_of_sublayers_pass_a_multiplier(tokens: torch.Tensor) -> None:
    """What is constant in a sublayer's output goes through what stands behind it like everything else."""
    model = zoo.bridge("granite", attention_bias=True, mlp_bias=True)
    compare_ffn_neuron(model, "granite", tokens)
    labels = tlsv.trace(model, tokens, 5).activations("L1N3", "ffn_neuron")["label"].tolist()
    assert "0_mlp_bias" in labels


def compare_ffn_neuron(model: Any, family: str, tokens: torch.Tensor) -> None:
    reference = Reference(model, family, tokens)
    trace = tlsv.trace(model, tokens, 5, position=4)
    mlp, d = model.blocks[1].mlp, reference.brute.d_model
    up = LinearMap(getattr(mlp, "in"), d)
    gate = None if mlp.W_gate is None else LinearMap(mlp.gate, d)
    m = reference.brute.cache["blocks.1.mlp.hook_post"][4]
    neurons = [int(m.abs().argmax())]
    if gate is not None:  # and where act(gate) is negative, which turns the scores' signs
        norm, x = reference.norm(1, "mlp"), reference.brute.residual(1, "mlp", 4)
        opened = (x if norm is None else call(norm.module, x[None])[0]) @ gate.matrix + gate.bias
        neurons.append(int(m.abs().where(opened < 0, 0.0).argmax()))
    for neuron, by in itertools.product(neurons, BYS):
        table = trace.activations(f"L1N{neuron}", by)
        components = reference.components(1, "mlp", 4, by)
        reads, bias = reference.reading(1, "mlp", 4, up, neuron)
        if gate is None:
            pre = reference.brute.cache["blocks.1.mlp.hook_pre"][4, neuron]
            assert table.attrs["sums_to"] == "pre-activation"
            assert abs(table["score"].sum() - pre) < 2e-5 * table["score"].abs().max()
            compare(table, "score", reads, bias, components)
            continue
        linear = sum(float(reads(vector)) for vector in components.values()) + float(bias)
        opened = float(m[neuron]) / linear
        assert table.attrs["sums_to"] == "coefficient"
        assert abs(table["score"].sum() - m[neuron]) < 2e-5 * table["score"].abs().max()
        compare(table, "up", reads, bias, components)
        compare(table, "score", lambda v, r=reads, o=opened: r(v) * o, bias * opened, components)
        compare(table, "gate", *reference.reading(1, "mlp", 4, gate, neuron), components)


@pytest.mark.few_families
@pytest.mark.parametrize(("family", "compatibility"), families())
def test_attention_neurons(family: str, compatibility: bool, tokens: torch.Tensor) -> None:
    """A neuron of the last layer reads its source position, of the head that its values come from."""
    model = zoo.bridge(family, compatibility=compatibility)
    reference = Reference(model, family, tokens)
    trace = tlsv.trace(model, tokens, 5, position=5)
    v = reference.brute.cache["blocks.1.attn.hook_v"]
    n_heads, (_, kv_heads, d_head) = model.blocks[1].attn.W_O.shape[0], v.shape
    head, dim, source = n_heads - 2, 3, 2
    kv_head = head * kv_heads // n_heads
    values = LinearMap(lambda x: model.blocks[1].attn.v(x)[..., : kv_heads * d_head], reference.brute.d_model)
    for by in BYS:
        table = trace.activations(f"L1H{head}D{dim}@{source}", by)
        assert table.attrs["sums_to"] == "value"
        assert abs(table["score"].sum() - v[source, kv_head, dim]) < 2e-5 * table["score"].abs().max()
        components = reference.components(1, "attn", source, by)
        compare(table, "score", *reference.reading(1, "attn", source, values, kv_head * d_head + dim), components)


@pytest.mark.hooked
@pytest.mark.parametrize("variant", sorted(set(zoo.HOOKED)))
def test_hooked_transformer_sums(variant: str, tokens: torch.Tensor) -> None:
    """Scores add up to HookedTransformer's own pre-activations, coefficients and values."""
    model = zoo.hooked(variant)
    trace = tlsv.trace(model, tokens, 5)
    cache = trace.cache
    _, full = model.run_with_cache(tokens)
    group = cache["blocks.1.attn.hook_v"].shape[2]
    value = cache["blocks.1.attn.hook_v"][0, 3, 2 * group // 4, 1]
    for by in BYS[: 3 if variant == "attn_only" else 4]:
        assert abs(trace.activations("L1H2D1@3", by)["score"].sum() - value) < 1e-4
    if variant != "attn_only":
        gated = "gate" in trace.activations("L1N4")
        whole = full["blocks.1.mlp.hook_post" if gated else "blocks.1.mlp.hook_pre"][0, -1, 4]
        for by in BYS:
            assert abs(trace.activations("L1N4", by)["score"].sum() - whole) < 1e-4


@pytest.mark.hooked
def test_a_gate_that_mixes_neurons(tokens: torch.Tensor) -> None:
    """SoLU's softmax runs over all neurons, so a gate is opened among them and not by itself."""
    model = zoo.hooked("rotary_gated_grouped", act_fn="solu")
    trace = tlsv.trace(model, tokens, 5)
    coefficients = trace.ffn_neurons(top=None).set_index("label")["coefficient"]
    for label in ("L1N5", "L1N31", "L0N7"):
        assert trace.activations(label)["score"].sum() == pytest.approx(coefficients[label], abs=1e-4)


@pytest.mark.any_release
def test_order_of_rows(tokens: torch.Tensor) -> None:
    """What drove the neuron comes first, whatever the sign of what it drove it to."""
    trace = tlsv.trace(zoo.model("llama"), tokens, 5)
    coefficients = trace.ffn_neurons(top=None).query("layer == 1").set_index("label")["coefficient"]
    high, low = coefficients.idxmax(), coefficients.idxmin()
    assert trace.activations(high)["score"].is_monotonic_decreasing
    assert trace.activations(low)["score"].is_monotonic_increasing


@pytest.mark.any_release
@pytest.mark.parametrize(
    ("label", "by", "message"),
    [
        ("L1N5", "token", "by is 'sublayer'"),
        ("L1H2", "sublayer", "are of neurons"),
        ("0_mlp_out", "sublayer", "this is a sublayer"),
        ("L1N999", "sublayer", "neuron 999 is not below"),
        ("L1H9D0@1", "sublayer", "head 9 is not below"),
        ("L1H0D99@1", "sublayer", "dim 99 is not below"),
        ("L1H0D0@99", "sublayer", "no position 99"),
        ("L9N0", "sublayer", "out of range"),
        ("nonsense", "sublayer", "is not a label"),
        ("embed@1", "sublayer", "'embed@1' stands in tables for an embedding or a bias term"),
        ("1_mlp_bias", "sublayer", "stands in tables for"),
        ("biased", "sublayer", "is not a label"),
    ],
)
def test_refusals(label: str, by: str, message: str, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it, without annotations enforced: what speaks is the package's own check."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    trace = tlsv.trace(zoo.model("gpt2"), tokens, 5)
    with pytest.raises(ValueError, match=message):
        trace.activations(label, by)


def edited_run(model: Any, tokens: torch.Tensor, name: str, position: int) -> Any:
    """The cache of a run in which one activation was raised at one position."""

    def edit(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, position] += 1.0
        return value

    with model.hooks(fwd_hooks=[(name, edit)]):
        return model.run_with_cache(tokens)[1]


@pytest.mark.parametrize(
    ("hook", "label", "message"),
    [
        ("blocks.1.attn.hook_v", "L1H0D0@2", "value weights do not give its values"),
        ("blocks.1.mlp.gate.hook_out", "L1N3", "subkeys do not give its FFN coefficients"),
    ],
)
def test_a_run_whose_readers_were_edited_is_refused(hook: str, label: str, message: str, tokens: torch.Tensor) -> None:
    """Where the run did something else than its weights say, scores would explain another number."""
    model = zoo.bridge("llama")
    trace = tlsv.trace(model, tokens, 5, position=2, cache=edited_run(model, tokens, hook, 2))
    with pytest.raises(tlsv.UnsupportedModelError, match=message):
        trace.activations(label)


def test_something_unseen_in_the_residual_stream_is_refused(tokens: torch.Tensor) -> None:
    """What is added at another position than the trace's is found when the scores there are made."""
    model = zoo.model("llama")
    trace = tlsv.trace(model, tokens, 5, cache=edited_run(model, tokens, "blocks.1.hook_resid_pre", 2))
    with pytest.raises(tlsv.UnsupportedModelError, match="not the sum of the earlier"):
        trace.activations("L1H0D0@2")


@pytest.mark.any_release
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tokens: torch.Tensor) -> None:
    """Scores are computed in float32; the sum is the model's own to its rounding."""
    for family in ("llama", "gpt2", "gemma2", "apertus"):
        model = zoo.model(family, dtype=dtype, seed=2)
        trace = tlsv.trace(model, tokens, 5)
        for label in trace.ffn_neurons(top=None)["label"][::4]:
            trace.activations(label)  # none is refused for what is rounding
        row = trace.ffn_neurons(top=1).iloc[0]
        table = trace.activations(row["label"], "ffn_neuron")
        assert table["score"].dtype == "float32"
        if table.attrs["sums_to"] == "coefficient":
            size = table["score"].abs().sum()
            assert abs(table["score"].sum() - row["coefficient"]) < 0.05 * size


@pytest.mark.few_families
@pytest.mark.parametrize("family", sorted(zoo.MIXTURES))
def test_neurons_of_experts(family: str, tokens: torch.Tensor) -> None:
    """Scores add up to the coefficient of an expert's neuron, routing weight included; gate and up to theirs."""
    model = zoo.bridge(family)
    trace = tlsv.trace(model, tokens, 5, position=4)
    table = trace.ffn_neurons(top=None)
    assert "expert" in table
    # The strongest neuron of every expert in use, by size of its coefficient.
    rows = table[table["expert"].notna() & (table["layer"] == 1)]
    rows = rows.assign(size=rows["coefficient"].abs()).sort_values("size").groupby("expert").tail(1)
    assert len(rows) >= 2
    for row in rows.itertuples():
        for by in BYS:
            scores = trace.activations(row.label, by)
            assert scores.attrs["sums_to"] == "coefficient"
            assert abs(scores["score"].sum() - row.coefficient) < 5e-5 * scores["score"].abs().max()
    values = trace.ffn_neurons(top=12)
    shares = trace.query_layers(values)
    expected = values.loc[~values["label"].isin(shares.attrs["left_out"]), "log_prob_increase"].sum()
    assert shares["query_score"].sum() == pytest.approx(expected, rel=1e-3)


@pytest.mark.any_release
def test_scores_of_an_expert_by_hand(tokens: torch.Tensor) -> None:
    """Mixtral: routing weight times silu(gate) times what the up projection reads, from the Hugging Face weights."""
    model = zoo.bridge("mixtral")
    trace = tlsv.trace(model, tokens, 5, position=4)
    row = trace.ffn_neurons(top=None).query("layer == 1").iloc[0]
    layer = model.original_model.model.layers[1]
    norm, experts = layer.post_attention_layernorm, layer.mlp.experts
    experts = getattr(experts, "original_component", experts)
    half = experts.gate_up_proj.shape[1] // 2
    gate, up = experts.gate_up_proj[row.expert, row.neuron], experts.gate_up_proj[row.expert, half + row.neuron]
    x = trace.cache["blocks.1.hook_resid_mid"][0, 4]
    gain = norm.weight.detach() / (x.pow(2).mean() + norm.variance_epsilon).sqrt()
    opened = torch.nn.functional.silu((gain * x) @ gate)
    weight = row.coefficient / float((opened * ((gain * x) @ up)).detach())  # the routing weight, which others test
    assert 0 < weight < 1
    scores = trace.activations(row.label, "sublayer").set_index("label")
    for label, hook in (("embed", "blocks.0.hook_resid_pre"), ("0_mlp_out", "blocks.0.hook_mlp_out")):
        c = gain * trace.cache[hook][0, 4]
        assert scores.loc[label, "gate"] == pytest.approx(float((c @ gate).detach()), abs=1e-4)
        assert scores.loc[label, "up"] == pytest.approx(float((c @ up).detach()), abs=1e-4)
        assert scores.loc[label, "score"] == pytest.approx(weight * float((opened * (c @ up)).detach()), abs=1e-4)
    query = trace.query_ffn_neurons(trace.attn_neurons(top=8).query("layer == 1"), top=5)
    assert list(query) == ["label", "layer", "expert", "neuron", "query_score"]


@pytest.mark.parametrize("family", sorted(zoo.HYBRIDS))
def test_hybrids(family: str, tokens: torch.Tensor) -> None:
    """A mixer is one component among those that a neuron reads."""
    if family == "olmo_hybrid" and zoo.has_hooked_transformer():
        pytest.skip("TransformerLens 3.9 has no residual stream between OLMo Hybrid's sublayers")
    trace = tlsv.trace(zoo.model(family), tokens, 5)
    row = trace.ffn_neurons(top=None).query("layer == 1").iloc[0]
    table = trace.activations(row["label"], "sublayer")
    assert set(trace.layers()["label"][:-1]) <= set(table["label"])
    if table.attrs["sums_to"] == "coefficient":
        assert abs(table["score"].sum() - row["coefficient"]) < 5e-5 * table["score"].abs().max()


def test_latent_attention_is_refused_by_name(tokens: torch.Tensor) -> None:
    """Its values are read through a norm of their own; its FFN neurons have scores like any."""
    trace = tlsv.trace(zoo.model("deepseek_v2"), tokens, 5)
    with pytest.raises(tlsv.UnsupportedModelError, match="latent attention, whose values are read through a norm"):
        trace.activations(trace.attn_neurons(top=1)["label"].iloc[0])
    with pytest.raises(ValueError, match="name it, as in"):
        tlsv.trace(zoo.model("llama"), tokens, 5).activations("L1H0D0")
