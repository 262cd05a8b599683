"""Ablations: against the same ablation by hand on the Hugging Face model, and against the parts, over all families."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import zoo
from helpers.brute_force import BruteForce, call
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.ablation.ablate import ablation_mode, require_position
from tl_subvalues.ablation.hooks import Mode, make_hooks
from tl_subvalues.labels import parse_label
from tl_subvalues.model_view import view_of

TARGET = 17
# Log-probs in nats; 3e-6 is the most that was seen.
TOLERANCE = 1e-5
# These bridges run Hugging Face's own attention and show its pattern afterwards.
PATTERN_AFTER_Z = {"gpt_neo", "gptj", "opt", "xglm"}


def log_probs(model: Any, tokens: Tensor, hooks: Any = ()) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=list(hooks)).double().log_softmax(-1)


# By hand, with torch's own hooks on Hugging Face's modules.


@dataclass
class Names:
    """Where a family keeps its layers, the last maps of its sublayers, and its values."""

    layers: Callable[[Any], Any]
    attn_out: str
    mlp_out: str
    values: str
    value_columns: Callable[[int, int], list[int]]  # of (key/value head, index), among the outputs of `values`
    whole: dict[str, str]  # the module whose output is what a sublayer adds


# Head size 8 (4 heads of width 32).
LLAMA = Names(
    lambda m: m.model.layers,
    "self_attn.o_proj",
    "mlp.down_proj",
    "self_attn.v_proj",
    lambda h, i: [8 * h + i],
    {"attn": "self_attn.o_proj", "mlp": "mlp.down_proj"},
)
HANDS = {
    "gpt2": Names(
        lambda m: m.transformer.h,
        "attn.c_proj",
        "mlp.c_proj",
        "attn.c_attn",
        lambda h, i: [64 + 8 * h + i],
        {"attn": "attn.c_proj", "mlp": "mlp.c_proj"},
    ),
    "llama": LLAMA,
    "gemma2": Names(
        *(LLAMA.layers, LLAMA.attn_out, LLAMA.mlp_out, LLAMA.values, LLAMA.value_columns),
        {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
    ),
    "gpt_neox_parallel": Names(
        lambda m: m.gpt_neox.layers,
        "attention.dense",
        "mlp.dense_4h_to_h",
        "attention.query_key_value",
        lambda h, i: [24 * h + 16 + i],
        {"attn": "attention.dense", "mlp": "mlp.dense_4h_to_h"},
    ),
    "bloom": Names(
        lambda m: m.transformer.h,
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "self_attention.query_key_value",
        lambda h, i: [24 * h + 16 + i],
        {"attn": "self_attention.dense", "mlp": "mlp.dense_4h_to_h"},
    ),
}


class ByHand:
    """A Hugging Face model, its parts multiplied by a factor at a query position (None: all)."""

    def __init__(self, family: str, tokens: Tensor, factor: float, position: int | None) -> None:
        self.model, self.tokens, self.names = zoo.hf_model(family), tokens, HANDS[family]
        self.factor, self.at = factor, slice(None) if position is None else position
        self.n_groups = 2 if family in ("llama", "gemma2") else 4

    def module(self, layer: int, name: str) -> Any:
        return self.names.layers(self.model)[layer].get_submodule(name)

    def scale_input(self, layer: int, name: str, columns: Any) -> None:
        def edit(module: Any, inputs: Any) -> Any:
            x = inputs[0].clone()
            x[:, self.at, columns] *= self.factor
            return (x, *inputs[1:])

        self.module(layer, name).register_forward_pre_hook(edit)

    def scale_output(self, layer: int, name: str) -> None:
        def edit(module: Any, inputs: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, self.at] *= self.factor
            return output

        self.module(layer, name).register_forward_hook(edit)

    def ablate_source(self, layer: int, head: int, dims: list[int], source: int) -> None:
        """A second run with the values scaled tells what z would be; its head's share is put in."""
        seen: list[Tensor] = []
        columns = [c for i in dims for c in self.names.value_columns(head * self.n_groups // 4, i)]

        def scale_values(module: Any, inputs: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, source, columns] *= self.factor
            return output

        values, out = self.module(layer, self.names.values), self.module(layer, self.names.attn_out)
        handles = [
            values.register_forward_hook(scale_values),
            out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone())),
        ]
        self.log_probs()
        for handle in handles:
            handle.remove()

        def put_in(module: Any, inputs: Any) -> Any:
            z = inputs[0].clone()
            columns = [8 * head + i for i in dims]
            z[:, self.at, columns] = seen[0][:, self.at, columns]
            return (z, *inputs[1:])

        out.register_forward_pre_hook(put_in)

    def ablate(self, label: str) -> None:
        one = parse_label(label)
        if one.unit == "sublayer":
            self.scale_output(one.layer, self.names.whole[one.sublayer])
        elif one.unit == "ffn_neuron":
            self.scale_input(one.layer, self.names.mlp_out, [one.neuron])
        else:
            dims = list(range(8)) if one.dim is None else [one.dim]
            if one.position is None:
                self.scale_input(one.layer, self.names.attn_out, [8 * one.head + i for i in dims])
            else:
                self.ablate_source(one.layer, one.head, dims, one.position)

    def log_probs(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.tokens).logits.double().log_softmax(-1)


@pytest.mark.parametrize(
    ("mode", "position"),
    [("zero", None), (-1.0, 5), *(pytest.param(*of, marks=pytest.mark.slow) for of in (("zero", -2), (2.5, None)))],
)
@pytest.mark.parametrize("family", HANDS)
def test_as_by_hand_on_the_hugging_face_model(
    family: str, mode: str | float, position: int | None, tokens: Tensor
) -> None:
    """Every kind of component, alone and after others below it, as torch's hooks on the wrapped modules do it."""
    model = zoo.bridge(family)
    base = log_probs(model, tokens)
    for labels in (
        ["L0N3", "L1N7", "L1N8"],
        ["L0H1", "L1H2"],
        ["L0H3D5", "L1H3D2"],
        ["L0H3D5@2", "L0H0@1", "L0H1@3", "L0H2@5"],
        ["L1H1@0"],
        ["0_attn_out"],
        ["1_mlp_out"],
        ["L0N3", "L0H0", "L1H3D5@2", "1_mlp_out"],
    ):
        hand = ByHand(family, tokens, 0.0 if mode == "zero" else float(mode), position)
        for label in labels:
            hand.ablate(label)
        found = log_probs(model, tokens, tlsv.ablation_hooks(model, labels, mode=mode, position=position))
        assert torch.allclose(found, hand.log_probs(), rtol=0, atol=TOLERANCE), labels
        # A random head may look elsewhere from one position, but not from all.
        if position is None or "@" not in labels[0]:
            assert (found - base).abs().max() > 5 * TOLERANCE, labels


# Over all families: the sublayer's output is what the parts that are left give, and the rest of the model follows.


def expected_output(
    case: BruteForce, layer: int, sublayer: str, labels: list[str], factor: float, at: int | None
) -> Tensor:
    """A sublayer's output [pos, d_model] with parts of it multiplied, from the run that was left alone."""
    queries = list(range(case.n_positions)) if at is None else [at]
    if labels == [f"{layer}_{sublayer}_out"]:
        out = case.cache[f"blocks.{layer}.hook_{sublayer}_out"].clone()
        out[queries] *= factor
        return out
    if sublayer == "mlp":
        parts = case.cache[f"blocks.{layer}.mlp.hook_post"].clone()
        for label in labels:
            parts[queries, parse_label(label).neuron] *= factor
    else:
        pattern = case.cache[f"blocks.{layer}.attn.hook_pattern"]
        v = case.cache[f"blocks.{layer}.attn.hook_v"].repeat_interleave(
            4 // case.cache[f"blocks.{layer}.attn.hook_v"].shape[1], 1
        )
        shares = torch.einsum("hqk,khe->qkhe", pattern, v)
        chosen = torch.zeros_like(shares, dtype=torch.bool)
        for label in labels:
            one = parse_label(label)
            sources = slice(None) if one.position is None else one.position
            for q in queries:
                chosen[q, sources, one.head, slice(None) if one.dim is None else one.dim] = True
        parts = torch.where(chosen, shares * factor, shares).sum(1).flatten(1)
    linear = case._maps[layer, sublayer]
    raw = parts @ linear.matrix + linear.bias
    post = case._posts.get((layer, sublayer))
    raw = raw if post is None else call(post.module, raw)
    return raw * (case.config.residual_multiplier if case.family == "granite" else 1.0)


def keeper(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(value: Tensor, hook: Any) -> None:
        seen[name] = value[0].double()

    return keep


@pytest.mark.parametrize("built", zoo.every_model())
def test_every_family_obeys(built: tuple[str, bool], tokens: Tensor) -> None:
    """The edit reaches the sublayer's output (its post-norm made anew), the residual stream and the logits."""
    family, compatibility = built
    model = zoo.hooked(family) if family in zoo.HOOKED else zoo.bridge(family, compatibility=compatibility)
    case = BruteForce(model, family, tokens, folded=compatibility)
    base = case.own_log_probs
    for layer, sublayer, labels, mode, position in (
        (0, "attn", ["L0H1", "L0H1D3", "L0H3D2"], "zero", None),
        (1, "attn", ["L1H2@3", "L1H2D1@2", "L1H0D3", "L1H2D1"], "zero", None),
        (1, "attn", ["L1H2@3", "L1H2D1@2", "L1H0D3", "L1H2@3"], 2.0, 4),
        (0, "mlp", [f"L0N{n}" for n in range(0, 40, 3)], "zero", 5),
        (1, "mlp", [f"L1N{n}" for n in range(0, 40, 3)], -2.0, None),
        (0, "attn", ["0_attn_out"], "zero", -1),
        (1, "mlp", ["1_mlp_out"], 2.0, None),
    ):
        if not case.has(layer, sublayer):
            continue
        hooks = tlsv.ablation_hooks(model, labels, mode=mode, position=position)
        assert len({name for name, _ in hooks}) == len(hooks)
        if family in PATTERN_AFTER_Z and position == 4:
            with pytest.raises(tlsv.UnsupportedModelError, match="only after z"):
                log_probs(model, tokens, hooks)
            continue
        seen: dict[str, Tensor] = {}
        names = [f"blocks.{layer}.hook_{s}" for s in ("resid_pre", "resid_post", "attn_out", "mlp_out")]
        names = [name for name in names if name in case.cache]
        after = log_probs(model, tokens, [*hooks, *((name, keeper(seen, name)) for name in names)])
        factor = 0.0 if mode == "zero" else float(mode)
        at = None if position is None else position % case.n_positions
        expected = expected_output(case, layer, sublayer, labels, factor, at)
        found = seen[f"blocks.{layer}.hook_{sublayer}_out"]
        assert (found - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max())), labels
        written = sum(seen[name] for name in names if name.endswith("_out"))
        resid = seen[f"blocks.{layer}.hook_resid_pre"] + written
        assert (resid - seen[f"blocks.{layer}.hook_resid_post"]).abs().max() < 1e-4 * float(resid.abs().max())
        assert (after - base).abs().max() > 1e-3, labels


# What hooks promise.


def hooks_left(model: Any) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_nothing_is_left_after_an_exception(family: str, tokens: Tensor) -> None:
    """A run that breaks off in the middle of an attention sublayer leaves no hook, and the next run is right."""
    model = zoo.model(family)
    hooks = tlsv.ablation_hooks(model, ["L0H1@2", "L0N3", "L0H0"], position=-1)
    expected = log_probs(model, tokens, hooks)
    base = log_probs(model, tokens)

    def fail(value: Tensor, hook: Any) -> None:
        raise ArithmeticError("broken off")

    other = torch.flip(tokens, [1])
    for where in ("blocks.0.attn.hook_pattern", "blocks.0.hook_attn_out", "blocks.1.hook_resid_pre"):
        with pytest.raises(ArithmeticError):
            model.run_with_hooks(other, fwd_hooks=[*hooks, (where, fail)])
        assert hooks_left(model) == 0
        assert torch.equal(log_probs(model, tokens, hooks), expected)
    assert torch.equal(log_probs(model, tokens), base)


def test_beside_other_hooks(tokens: Tensor) -> None:
    """Hooks elsewhere, and in the same places in the documented order, work together; the other order is refused."""
    model = zoo.model("llama")
    ours = tlsv.ablation_hooks(model, ["L1H2D1@2"], position=-1)

    def double(value: Tensor, hook: Any) -> Tensor:
        return value * 2

    both = log_probs(model, tokens, [("blocks.0.hook_mlp_out", double), *ours])
    assert (both - log_probs(model, tokens, ours)).abs().max() > 1e-3
    values = ("blocks.1.attn.hook_v", double)
    z = ("blocks.1.attn.hook_z", double)
    # Values doubled and then the share taken out, or the share taken out and z doubled: one and the same.
    before, after = log_probs(model, tokens, [values, *ours]), log_probs(model, tokens, [*ours, z])
    assert torch.allclose(before, after, atol=TOLERANCE)
    for wrong in ([*ours, values], [z, *ours]):
        with pytest.raises(ValueError, match="list those that"):
            log_probs(model, tokens, wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_half_precision(family: str, dtype: torch.dtype, tokens: Tensor) -> None:
    """All source positions of a head taken out one by one leave nothing of it, within the dtype's rounding."""
    model = zoo.model(family, dtype=dtype)
    labels = [f"L1H2@{p}" for p in range(tokens.shape[1])]
    one_by_one = log_probs(model, tokens, tlsv.ablation_hooks(model, labels, position=-1))[0, -1]
    whole = log_probs(model, tokens, tlsv.ablation_hooks(model, "L1H2", position=-1))[0, -1]
    assert (one_by_one - whole).abs().max() < (0.1 if dtype == torch.bfloat16 else 0.02)
    assert (log_probs(model, tokens)[0, -1] - whole).abs().max() > 0.2


@pytest.mark.any_release
def test_a_set_for_every_row_of_a_batch(tokens: Tensor) -> None:
    """Hooks with one set of components a row do to each row what its own hooks do; no other batch will do."""
    model = zoo.model("llama")
    view = view_of(model)
    sets = [["L0N3", "L1N5"], [], ["L0N4", "L1H2"], ["L1H2D1@2", "L1H2D1@3", "0_attn_out"]]
    rows = [[parse_label(label) for label in labels] for labels in sets]
    for position in (None, -1):
        hooks = make_hooks(view, rows, Mode(), position)
        together = log_probs(model, tokens.expand(4, -1), hooks)
        for row, labels in enumerate(sets):
            own = tlsv.ablation_hooks(model, labels, position=position) if labels else []
            assert torch.allclose(together[row], log_probs(model, tokens, own)[0], atol=TOLERANCE)
        with pytest.raises(ValueError, match="batch of as many"):
            log_probs(model, tokens.expand(3, -1), hooks)


def test_mean_over_a_reference() -> None:
    """A neuron, a head, an index and a sublayer at their means over all positions of prompts of two lengths."""
    model = zoo.model("llama")
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 61, (1, n), generator=generator) for n in (5, 7, 7)]
    caches = [model.run_with_cache(prompt)[1] for prompt in prompts]

    def mean(name: str) -> Tensor:
        return torch.cat([cache[f"blocks.1.{name}"][0] for cache in caches]).mean(0)

    means = {
        "mlp.hook_post": mean("mlp.hook_post"),
        "attn.hook_z": mean("attn.hook_z"),
        "hook_mlp_out": mean("hook_mlp_out"),
    }

    def put(name: str, index: Any) -> tuple[str, Any]:
        def edit(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[(..., *index)] = means[name][index]
            return value

        return f"blocks.1.{name}", edit

    reference = [prompts[0][0].tolist(), prompts[1], prompts[2][0]]
    for label, name, index in (
        ("L1N5", "mlp.hook_post", (5,)),
        ("L1H2", "attn.hook_z", (2, slice(None))),
        ("L1H2D3", "attn.hook_z", (2, 3)),
        ("1_mlp_out", "hook_mlp_out", (slice(None),)),
    ):
        hooks = tlsv.ablation_hooks(model, label, mode="mean", reference=reference)
        expected = log_probs(model, prompts[1], [put(name, index)])
        assert torch.allclose(log_probs(model, prompts[1], hooks), expected, atol=TOLERANCE), label


def test_mean_of_what_is_read_from_a_source_position() -> None:
    """At source position 5 the mean is over the positions from there on, of the prompts that have one."""
    model = zoo.model("llama")
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 61, (1, n), generator=generator) for n in (5, 7, 8)]
    shares = []
    for prompt in prompts[1:]:
        cache = model.run_with_cache(prompt)[1]
        shares.append(cache["blocks.1.attn.hook_pattern"][0, 2, 5:, 5, None] * cache["blocks.1.attn.hook_v"][0, 5, 1])
    mean = torch.cat(shares).mean(0)
    own = model.run_with_cache(prompts[1])[1]["blocks.1.attn.hook_z"]

    def edit(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[0, 6, 2] += mean - shares[0][1]
        return value

    assert own.shape[1] == 7
    hooks = tlsv.ablation_hooks(model, "L1H2@5", mode="mean", reference=prompts, position=-1)
    assert torch.allclose(
        log_probs(model, prompts[1], hooks), log_probs(model, prompts[1], [("blocks.1.attn.hook_z", edit)]), atol=1e-5
    )
    with pytest.raises(ValueError, match="no reference prompt has a position 9"):
        tlsv.ablation_hooks(model, "L1H2@9", mode="mean", reference=prompts)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox_parallel"])
def test_trace_ablate(family: str, tokens: Tensor) -> None:
    """Before and after, from labels or a table, at the trace's own position; nothing ablated twice."""
    model = zoo.model(family)
    trace = tlsv.trace(model, tokens, TARGET, position=4)
    table = trace.ffn_neurons(top=7)
    result = trace.ablate(table, mode=3.0)
    after = log_probs(model, tokens, tlsv.ablation_hooks(model, table["label"], mode=3.0))[0, 4]
    assert list(result.index) == [f"{c}_{w}" for c in ("log_prob", "prob", "rank") for w in ("before", "after")]
    assert result["log_prob_before"] == pytest.approx(trace.log_prob, abs=TOLERANCE)
    assert result["rank_before"] == trace.rank
    assert result["log_prob_after"] == pytest.approx(float(after[TARGET]), abs=TOLERANCE)
    assert result["prob_after"] == pytest.approx(float(after[TARGET].exp()), abs=TOLERANCE)
    assert result["rank_after"] == 1 + int((after > after[TARGET]).sum())
    assert trace.ablate([*table["label"], *table["label"]], mode=3.0).equals(result)
    assert trace.ablate(table, mode=1.0)["log_prob_after"] == pytest.approx(trace.log_prob, abs=TOLERANCE)
    assert trace.ablate("L1N3", position=5)["log_prob_after"] == pytest.approx(trace.log_prob, abs=TOLERANCE)


def test_a_trace_of_another_run_is_not_compared(tokens: Tensor) -> None:
    """A trace under hooks is ablated under the same hooks, or not at all."""
    model = zoo.bridge("llama")
    other = [("blocks.0.hook_in", lambda value, hook: value * 2)]
    with model.hooks(fwd_hooks=other):
        trace = tlsv.trace(model, tokens, TARGET)
        trace.ablate("L1N3")
    with pytest.raises(ValueError, match="the same hooks"):
        trace.ablate("L1N3")


def test_after_an_earlier_ablation_a_share_is_the_ablated_run_s(tokens: Tensor) -> None:
    """All source positions of a head taken out one by one, with layer 0 ablated, leave nothing of the head."""
    model = zoo.model("llama")
    everywhere = [f"L1H2@{p}" for p in range(tokens.shape[1])]
    one_by_one = log_probs(model, tokens, tlsv.ablation_hooks(model, ["0_mlp_out", *everywhere], position=-1))
    whole = log_probs(model, tokens, tlsv.ablation_hooks(model, ["0_mlp_out", "L1H2"], position=-1))
    assert torch.allclose(one_by_one, whole, atol=TOLERANCE)


@pytest.mark.any_release
@pytest.mark.parametrize(
    ("labels", "arguments", "says"),
    [
        ([], {}, "no labels"),
        (["L9N1"], {}, "layer 9"),
        (["L1N48"], {}, "neuron 48 is not below 48"),
        (["L1H4"], {}, "head 4"),
        (["L1H0D8@1"], {}, "dim 8"),
        (["what"], {}, "not a label"),
        (["L1N3"], {"mode": "half"}, "'half'"),
        (["L1N3"], {"mode": float("nan")}, "finite"),
        (["L1N3"], {"mode": "mean"}, "reference="),
        (["L1N3"], {"mode": "mean", "reference": []}, "no prompts"),
        (["L1N3"], {"reference": [[3, 4]]}, "mode='mean'"),
    ],
)
def test_bad_input(labels: list[str], arguments: dict[str, Any], says: str) -> None:
    """One sentence each."""
    with pytest.raises(ValueError, match=says):
        tlsv.ablation_hooks(zoo.model("llama"), labels, **arguments)


@pytest.mark.any_release
def test_what_type_checkers_would_catch() -> None:
    """A truth value is no factor, and a fraction no position."""
    view = view_of(zoo.model("llama"))
    with pytest.raises(ValueError, match="True"):
        ablation_mode(view, [], True, None)
    with pytest.raises(ValueError, match=r"1\.5"):
        require_position(1.5)


def test_positions_out_of_range(tokens: Tensor) -> None:
    """Only the run knows how many there are: the sentence comes from there."""
    for family in ("llama", "gpt2"):
        model = zoo.model(family)
        for labels, position in ((["L1N3"], 7), (["L1H2@7"], None), (["L1H2@7"], -1)):
            with pytest.raises(ValueError, match="position 7 is out of range"):
                log_probs(model, tokens, tlsv.ablation_hooks(model, labels, position=position))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neo"])
def test_past_keys_and_values_are_refused(family: str, tokens: Tensor) -> None:
    """In a cached step of generation the first value is not that of source position 0; whole heads go on working."""
    model = zoo.model(family)
    arguments = {"max_new_tokens": 3, "do_sample": False, "use_past_kv_cache": True, "verbose": False}
    with model.hooks(fwd_hooks=tlsv.ablation_hooks(model, "L1H2")):
        model.generate(tokens, **arguments)
    with (
        model.hooks(fwd_hooks=tlsv.ablation_hooks(model, "L1H2@0")),
        pytest.raises(tlsv.UnsupportedModelError, match="past keys"),
    ):
        model.generate(tokens, **arguments)


def test_heads_and_sublayers_beside_experts(tokens: Tensor) -> None:
    """A mixture of experts is ablated whole like any FFN; for its neurons see test_mixtures.py."""
    model = zoo.model("mixtral")
    base = log_probs(model, tokens)
    for label in ("1_mlp_out", "L1H2", "L1H2@3"):
        assert (log_probs(model, tokens, tlsv.ablation_hooks(model, label)) - base).abs().max() > 1e-3


@pytest.mark.any_release
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox_parallel"])
@pytest.mark.parametrize("mode", ["zero", 0.5])
def test_labels_that_say_where(family: str, mode: Any, tokens: Tensor) -> None:
    """What is named at a position is ablated there, beside what is named everywhere; twice named, once ablated."""
    model = zoo.model(family)

    def ablated(labels: list[str], position: int | None = None) -> Tensor:
        return log_probs(model, tokens, tlsv.ablation_hooks(model, labels, mode=mode, position=position))

    for placed, plain in (
        ("L1N3@2", "L1N3"),
        ("0_mlp_out@2", "0_mlp_out"),
        ("L0H1@>2", "L0H1"),
        ("L0H1@1>2", "L0H1@1"),
    ):
        assert torch.allclose(ablated([placed]), ablated([plain], position=2), atol=TOLERANCE), placed
        assert not torch.allclose(ablated([placed]), ablated([plain]), atol=1e-5)
        assert torch.allclose(ablated([placed, plain]), ablated([plain]), atol=TOLERANCE)
        assert torch.allclose(ablated([placed], position=5), ablated([placed]), atol=TOLERANCE)
    two = ablated(["L1N3@2", "L1N4@5", "L0H1D2@1>2", "L0H1D2@1>4"])
    one_hook_each = [
        hook
        for label, position in (("L1N3", 2), ("L1N4", 5), ("L0H1D2@1", 2))
        for hook in tlsv.ablation_hooks(model, [label], mode=mode, position=position)
    ]
    assert not torch.allclose(two, log_probs(model, tokens, one_hook_each), atol=1e-6)
    with pytest.raises(ValueError, match="position 9 is out of range"):
        ablated(["L1N3@9"])


@pytest.mark.any_release
@pytest.mark.parametrize("position", [None, 5])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_another_label_holds_is_ablated_once(family: str, position: int | None, tokens: Tensor) -> None:
    """A head beside its sources and indices, a source beside its indices: by a factor, twice would be another."""
    model = zoo.model(family)

    def ablated(labels: list[str]) -> Tensor:
        return log_probs(model, tokens, tlsv.ablation_hooks(model, labels, mode=0.5, position=position))

    for whole, part in (("L0H2", "L0H2@1"), ("L0H2", "L0H2D3"), ("L0H2", "L0H2D3@1"), ("L0H2@1", "L0H2D3@1")):
        both = ablated([whole, part])
        assert torch.allclose(both, ablated([whole]), rtol=0, atol=TOLERANCE), (whole, part)
        assert not torch.allclose(both, ablated([part]), rtol=0, atol=10 * TOLERANCE), (whole, part)


def test_experts_neurons_at_a_position(tokens: Tensor) -> None:
    """As by `position=`."""
    model = zoo.bridge("mixtral")
    for label in ("L0E0N3", "L0E1N5", "L0E2N7", "L0E3N9"):
        placed, plain = (
            log_probs(model, tokens, tlsv.ablation_hooks(model, [name], position=position))
            for name, position in ((f"{label}@2", None), (label, 2))
        )
        assert torch.allclose(placed, plain, atol=TOLERANCE)
