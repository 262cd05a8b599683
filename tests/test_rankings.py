"""Rankings of FFN neurons: each score against the same number made another way."""

from typing import Any

import pytest
import torch
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.labels import ffn_neuron_label
from tl_subvalues.study.rankings import at_random, chosen_rankings

pytestmark = pytest.mark.any_release

TARGET = 17
LABELS = [ffn_neuron_label(layer, neuron) for layer in range(2) for neuron in range(48)]


@pytest.fixture(scope="module", params=["llama", "gemma2", "granite"])
def case(request: pytest.FixtureRequest, tokens: Tensor) -> tuple[Any, tlsv.Trace, Any]:
    model = zoo.model(request.param)
    return model, tlsv.trace(model, tokens, TARGET, position=5), model.run_with_cache(tokens)[1]


def stack(model: Any, cache: Any) -> Tensor:
    return torch.cat([tlsv.ffn_subvalues(model, cache, layer, pos_slice=5)[:, 0] for layer in range(2)])


@pytest.mark.parametrize("name", ["log_prob_increase", "prob_increase"])
def test_increases_are_the_table_s(case: tuple[Any, tlsv.Trace, Any], name: str) -> None:
    """Scores in order of layers and neurons, equal to the table's column."""
    _, trace, _ = case
    table = trace.ffn_neurons(top=None).set_index("label")[name]
    assert tlsv.RANKINGS[name](trace).tolist() == pytest.approx(table[LABELS].tolist(), rel=1e-5)


def test_sizes_and_attribution(case: tuple[Any, tlsv.Trace, Any]) -> None:
    """|m|, the row's norm, their product and the target's bs-value, from the subvalues themselves."""
    model, trace, cache = case
    subvalues = stack(model, cache)
    m = torch.cat([cache[f"blocks.{layer}.mlp.hook_post"][0, 5] for layer in range(2)])
    assert torch.allclose(tlsv.RANKINGS["coefficient"](trace), m.abs())
    assert torch.allclose(tlsv.RANKINGS["coefficient_times_norm"](trace), subvalues.norm(dim=-1), atol=1e-5)
    assert torch.allclose(tlsv.RANKINGS["norm"](trace) * m.abs(), subvalues.norm(dim=-1), atol=1e-5)
    readout = tlsv.Readout(model, scale=cache["ln_final.hook_scale"][0, 5])
    expected = readout.bs_values(subvalues)[:, TARGET]
    assert torch.allclose(tlsv.RANKINGS["direct_logit_attribution"](trace), expected, atol=1e-4)


@pytest.mark.each_release
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gradient_is_the_hugging_face_model_s(family: str, tokens: Tensor) -> None:
    """The derivative of log p by every coefficient, by autograd on the wrapped model's own modules."""
    model, hand = zoo.model(family), zoo.hf_model(family)
    trace = tlsv.trace(model, tokens, TARGET, position=5)
    inputs: list[Tensor] = []

    def keep(module: Any, given: Any) -> None:
        given[0].retain_grad()
        inputs.append(given[0])

    for layer in hand.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(keep)
    hand(tokens).logits[0, 5].log_softmax(-1)[TARGET].backward()
    expected = torch.cat([(x.grad * x)[0, 5] for x in inputs]).detach()
    found = tlsv.RANKINGS["gradient_times_activation"](trace)
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.abs().max() > 0.01
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(tlsv.RANKINGS["gradient_times_activation"](trace), found)
    assert sum(len(point.fwd_hooks) for point in model.hook_dict.values()) == 0


def all_kinds() -> list[Any]:
    hooked = ("ln_gelu", "gemma2_like", "rotary_gated_grouped", "solu_ln")
    marked = [pytest.param(("hooked", variant), id=variant, marks=pytest.mark.hooked) for variant in hooked]
    return [*(("bridge", family) for family in ("gpt2", "bloom", "gptj", "phi", "olmo2")), *marked]


@pytest.mark.each_release
@pytest.mark.parametrize("built", all_kinds())
def test_gradient_is_the_slope_of_a_factor(built: tuple[str, str], tokens: Tensor) -> None:
    """Of log p by a factor on the neuron's coefficient, at 1: from two runs with the factor a little off."""
    model = zoo.model(built[1]) if built[0] == "bridge" else zoo.hooked(built[1])
    trace = tlsv.trace(model, tokens, TARGET)
    found = tlsv.RANKINGS["gradient_times_activation"](trace)
    width = len(found) // 2
    for number in torch.topk(found.abs(), 4).indices.tolist():
        label, step = ffn_neuron_label(number // width, number % width), 0.02
        up, down = (trace.ablate(label, mode=1.0 + sign * step, position=-1)["log_prob_after"] for sign in (1, -1))
        assert float(found[number]) == pytest.approx((up - down) / (2 * step), rel=0.02, abs=1e-3)


@pytest.mark.hooked
def test_a_model_without_neurons(tokens: Tensor) -> None:
    """Attention alone has nothing to rank, and says so."""
    trace = tlsv.trace(zoo.hooked("attn_only"), tokens, TARGET)
    for name in ("coefficient", "random"):
        with pytest.raises(tlsv.UnsupportedModelError, match="no FFN neurons"):
            tlsv.RANKINGS[name](trace)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("name", ["log_prob_increase", "prob_increase"])
def test_the_shortcut_gives_the_exact_top(name: str, family: str, scale: str) -> None:
    """The search's top k by either increase is the top of all scores; the two orders differ."""
    model = zoo.bridge(family, seed=4, intermediate_size=1024) if family != "gpt2" else zoo.bridge(family, n_inner=1024)
    prompt = torch.randint(3, 61, (1, 6), generator=torch.Generator().manual_seed(1))
    trace = tlsv.trace(model, prompt, TARGET, scale=scale)
    ranking = tlsv.RANKINGS[name]
    scores = ranking(trace)
    labels = [ffn_neuron_label(layer, neuron) for layer in range(2) for neuron in range(1024)]
    for k in (1, 10, 300):
        expected = [labels[i] for i in torch.sort(scores, descending=True, stable=True).indices[:k].tolist()]
        assert ranking.top(trace, k) == expected
        assert tlsv.RANKINGS["coefficient"].top(trace, k) != expected
    other = "prob_increase" if name == "log_prob_increase" else "log_prob_increase"
    assert tlsv.RANKINGS[other].top(trace, 300) != ranking.top(trace, 300)


def test_random_is_the_same_whenever_it_is_drawn(tokens: Tensor) -> None:
    """By seed, prompt and target alone; all differ."""
    model = zoo.model("llama")
    traces = [tlsv.trace(model, *what) for what in ((tokens, 17), (tokens, 18), (torch.flip(tokens, [1]), 17))]
    tops = [tuple(at_random(seed).top(trace, 20)) for trace in traces for seed in (0, 1)]
    assert len(set(tops)) == 6
    again = tlsv.trace(model, tokens, 17)
    assert tuple(at_random(0).top(again, 20)) == tops[0]


def test_a_ranking_of_one_s_own(tokens: Tensor) -> None:
    """A plain function will do; what it returns is checked, and random is always there."""
    trace = tlsv.trace(zoo.model("llama"), tokens, TARGET)
    chosen = chosen_rankings({"mine": lambda trace: -tlsv.RANKINGS["norm"](trace)}, seed=3)
    assert list(chosen) == ["mine", "random"]
    assert chosen["mine"].top(trace, 96) == tlsv.RANKINGS["norm"].top(trace, 96)[::-1]
    assert chosen["random"].top(trace, 5) == at_random(3).top(trace, 5)
    assert list(chosen_rankings(["norm"], 0)) == ["norm", "random"]
    ours = [name for name, one in tlsv.RANKINGS.items() if one.of.unit == "ffn_neuron"]
    assert list(chosen_rankings(None, 0)) == ours
    assert len(ours) == 19
    with pytest.raises(ValueError, match="one score for each of 96"):
        chosen_rankings({"short": lambda trace: torch.zeros(3)}, 0)["short"].top(trace, 2)
    with pytest.raises(ValueError, match="NaN"):
        chosen_rankings({"nan": lambda trace: torch.full((96,), torch.nan)}, 0)["nan"].top(trace, 2)
    with pytest.raises(ValueError, match="no ranking 'nrom'"):
        chosen_rankings(["nrom"], 0)


def test_the_top_by_probability_where_probabilities_vanish() -> None:
    """No NaN and the exact order where the target's probability underflows at every sublayer."""
    model = zoo.bridge("llama", seed=2)
    with torch.no_grad():
        model.original_model.lm_head.weight.mul_(40.0)
    prompt = torch.randint(3, 61, (1, 6), generator=torch.Generator().manual_seed(1))
    worst = int(model(prompt)[0, -1].argmin())
    trace = tlsv.trace(model, prompt, worst)
    assert trace.log_prob < -110
    scores = tlsv.RANKINGS["prob_increase"](trace)
    assert torch.isfinite(scores).all()
    order = torch.sort(scores, descending=True, stable=True).indices[:7].tolist()
    assert tlsv.RANKINGS["prob_increase"].top(trace, 7) == [LABELS[i] for i in order]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_mixtures_of_experts_are_refused(family: str, tokens: Tensor) -> None:
    """Also where some layers are dense: a ranking of those alone would be compared with one of all neurons."""
    trace = tlsv.trace(zoo.bridge(family), tokens, TARGET)
    for name in ("coefficient", "norm", "direct_logit_attribution", "gradient_times_activation", "random"):
        with pytest.raises(tlsv.UnsupportedModelError, match=r"layer \d is a mixture of experts"):
            tlsv.RANKINGS[name].top(trace, 5)


def test_a_comparison_is_sent_by_name() -> None:
    """Rankings of the package are closures; another process makes them again, and gets the user's own by value."""
    import pickle

    from tl_subvalues.study.evaluate import Evaluating
    from tl_subvalues.study.rankings import chosen_rankings

    chosen = chosen_rankings({"mine": negated_norm, "norm": tlsv.RANKINGS["norm"]}, 3)
    job = Evaluating(chosen, (2, 5), 3, "frozen", ("kind",))
    again = pickle.loads(pickle.dumps(job))
    assert again.settings() == job.settings()
    assert list(again.rankings) == ["mine", "norm", "random"]
    assert again.rankings["norm"] is tlsv.RANKINGS["norm"]
    trace = tlsv.trace(zoo.model("llama"), "w3 w4 w5", "w6")
    for name in chosen:
        assert again.rankings[name].top(trace, 4) == chosen[name].top(trace, 4)


def negated_norm(trace: tlsv.Trace) -> torch.Tensor:
    return -tlsv.RANKINGS["norm"](trace)
