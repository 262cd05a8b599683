"""Dtypes, devices and quantised weights: float32 sums whatever the model's dtype, wherever its layers are."""

import pandas as pd
import pytest
import torch
from helpers import placed, zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view import view_of
from tl_subvalues.readout.asked import Asked
from tl_subvalues.tracing.prompt import trace_of_run

pytestmark = pytest.mark.any_release

TARGET = 9
HALF = (torch.bfloat16, torch.float16)


def tables(trace: tlsv.Trace) -> dict[str, pd.DataFrame]:
    """Everything that can be asked of a trace."""
    ffn, attn = trace.ffn_neurons(top=5), trace.attn_neurons(top=5)
    values = pd.concat([ffn, attn])
    return {
        "layers": trace.layers(),
        "heads": trace.heads(),
        "head_positions": trace.head_positions(),
        "ffn": ffn,
        "attn": attn,
        "ffn_lowest": trace.ffn_neurons(top=3, largest=False),
        "ffn_all": trace.ffn_neurons(top=None),
        "vocabulary": trace.vocabulary(["L0N3", "L1H2", "1_mlp_out"], k=3),
        "activations": trace.activations("L1N3", by="head_position"),
        "of_attn_neuron": trace.activations("L1H2D3@4", by="ffn_neuron"),
        "query_layers": trace.query_layers(values),
        "query_heads": trace.query_heads(values),
        "query_ffn": trace.query_ffn_neurons(values),
        "curve": trace.curve(ffn),
        "curve_of_layers": trace.curve(trace.layers()),
    }


def assert_same(ours: dict[str, pd.DataFrame], theirs: dict[str, pd.DataFrame], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, table in ours.items():
        pd.testing.assert_frame_equal(table, theirs[name], atol=tolerance, rtol=tolerance, obj=name)


def models() -> list[object]:
    """Names of models with and without gate, post-norms, grouped queries and parameters in the activation function."""
    bridges = ["gpt2", "llama", "gemma2", "apertus", "granite"]
    return [*bridges, *(pytest.param(name, marks=pytest.mark.hooked) for name in ("ln_gelu", "solu_ln", "gemma2_like"))]


def build(name: str, **keywords: object) -> object:
    return zoo.hooked(name, **keywords) if name in zoo.HOOKED else zoo.model(name, **keywords)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*models(), "granite, bfloat16"])
def test_layers_on_different_devices(name: str, tokens: torch.Tensor) -> None:
    """The first layer on one device, the last on a second, the readout on a third: the same tables, to the bit."""
    name, half, _ = name.partition(", ")
    model = build(name, dtype=torch.bfloat16 if half else torch.float32)
    view = view_of(model)
    logits, cache = view.run(tokens[0], [6])
    alone = tables(trace_of_run(view, tokens[0], Asked((TARGET,)), 6, "frozen", cache, logits[0]))
    with placed.Placement():
        for key, parameter in model.named_parameters():
            where = "cpu" if "blocks.0." in key or ".0." in key else "cuda:1" if "blocks." in key else "cuda:2"
            placed.place(parameter, where)
        for key, tensor in cache.items():
            placed.place(tensor, "cpu" if "blocks.0." in key else "cuda:1" if "blocks." in key else "cuda:2")
        placed.place(logits, "cuda:2")
        apart = view_of(model)
        for scale in ("frozen", "recomputed"):
            traced = trace_of_run(apart, tokens[0], Asked((TARGET,)), 6, scale, cache, logits[0])
            assert traced.run.view.device.index in (1, 2)
            spread = tables(traced)
            if scale == "frozen":
                assert_same(spread, alone, 1e-6)


def test_the_pretended_devices_object_like_real_ones() -> None:
    """What the test above is worth: two places in one operation raise, copies and CPU indices do not."""
    a, b, index = torch.ones(2, 2), torch.ones(2, 2), torch.tensor([1])
    with placed.Placement():
        placed.place(a, "cuda:1")
        for mixing in (lambda: a + b, lambda: a @ b, lambda: torch.stack([a, b]), lambda: b[index.to("cuda:1")]):
            with pytest.raises(RuntimeError, match="same device"):
                mixing()
        with pytest.raises(TypeError):
            a.numpy()
        assert (a + b.to(a)).device == torch.device("cuda:1")
        assert a[index].device == (a * 2).device == torch.zeros(1, device=a.device).device == torch.device("cuda:1")
        assert a.cpu().device == placed.CPU
        assert a.device == torch.device("cuda:1")


@pytest.mark.each_release
def test_the_functional_core_brings_its_arguments_together(tokens: torch.Tensor) -> None:
    """Residual stream and subvalues on another device and in another dtype than the readout."""
    model = build("ln_gelu") if zoo.has_hooked_transformer() else build("gpt2")
    _, cache = model.run_with_cache(tokens)
    stack = tlsv.ffn_subvalues(model, cache, 1)
    x = cache["blocks.1.hook_resid_mid"][:, -1]
    expected = {}
    for scale in (cache["ln_final.hook_scale"][:, -1], "recomputed"):
        readout = tlsv.Readout(model, scale=scale)
        expected[str(scale)] = tlsv.log_prob_increase(readout, x, stack, TARGET)
        half = tlsv.log_prob_increase(readout, x.bfloat16(), stack.bfloat16(), TARGET)
        rounded = tlsv.log_prob_increase(readout, x.bfloat16().float(), stack.bfloat16().float(), TARGET)
        torch.testing.assert_close(half, rounded, atol=1e-6, rtol=1e-6)
        with placed.Placement():
            far_x, far_stack = x.clone(), stack.clone()
            placed.place(far_x, "cuda:1")
            placed.place(far_stack, "cuda:1")
            far = tlsv.log_prob_increase(readout, far_x, far_stack, TARGET)
            assert far.device == placed.CPU
        torch.testing.assert_close(far, expected[str(scale)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", models())
def test_half_precision_tables_are_those_of_its_numbers_in_float32(
    name: str, dtype: torch.dtype, tokens: torch.Tensor
) -> None:
    """What is computed from a half-precision run is float32: its weights and activations, cast, give the same."""
    if name in zoo.HOOKED:
        model = zoo.hooked(name, dtype=dtype)
        model.to(dtype)
    else:
        model = zoo.model(name, dtype=dtype)
    view = view_of(model)
    logits, cache = view.run(tokens[0], [6])
    half = tables(trace_of_run(view, tokens[0], Asked((TARGET,)), 6, "frozen", cache, logits[0]))
    assert all(table.dtypes[column] != "float16" for table in half.values() for column in table)
    model.float()
    for key in list(cache.keys()):
        cache.cache_dict[key] = cache[key].float()
    whole = view_of(model)
    whole.__dict__["dtype"] = dtype  # the run's own, which sets the tolerances of the checks
    full = tables(trace_of_run(whole, tokens[0], Asked((TARGET,)), 6, "frozen", cache, None))
    for table in ("layers", "heads", "head_positions", "ffn_all"):
        ours, theirs = half[table].set_index("label"), full[table].set_index("label")
        assert ours["log_prob_increase"].to_numpy() == pytest.approx(
            theirs.loc[ours.index, "log_prob_increase"].to_numpy(), abs=1e-5
        )


def test_offloaded_weights_are_refused(tokens: torch.Tensor) -> None:
    """Weights that accelerate holds elsewhere (meta tensors between runs): a sentence, not a crash in the middle."""
    model = zoo.bridge("llama")
    _, cache = model.run_with_cache(tokens)
    model.original_model.model.layers[1].to("meta")
    for call in (tlsv.attn_subvalues, tlsv.ffn_subvalues):
        assert call(model, cache, 0).shape[-1] == 32
        with pytest.raises(tlsv.UnsupportedModelError, match=r"layer 1 has its .* offloaded.*device_map"):
            call(model, cache, 1)


class Int8Linear(torch.nn.Linear):
    """A linear layer whose weight is stored in whole numbers and a scale, as quantisers do it."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        weight = linear.weight.detach()
        self.scale = float(weight.abs().max() / 127)
        self.weight = torch.nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x) * self.scale).T


@pytest.mark.parametrize(("module", "name"), [("self_attn", "o_proj"), ("mlp", "down_proj")])
def test_quantised_weights_are_refused(module: str, name: str, tokens: torch.Tensor) -> None:
    """Whole numbers are never taken for weights; what does not need them still works, and dequantising helps."""
    bridge = zoo.bridge_class()
    hf = zoo.hf_model("llama")
    owner = getattr(hf.model.layers[1], module)
    quantised = Int8Linear(getattr(owner, name))
    setattr(owner, name, quantised)
    model = bridge.boot_transformers("llama", hf_model=hf, tokenizer=zoo.tokenizer(), device="cpu")
    trace = tlsv.trace(model, tokens, TARGET)
    assert len(trace.layers()) == 4
    ask, other = (trace.heads, trace.ffn_neurons) if module == "self_attn" else (trace.ffn_neurons, trace.heads)
    assert len(other())
    with pytest.raises(tlsv.UnsupportedModelError, match=r"layer 1 .*quantised \(torch.int8\).*dequanti"):
        ask()
    plain = zoo.hf_model("llama")
    with torch.no_grad():
        weight = getattr(getattr(plain.model.layers[1], module), name).weight
        weight.copy_(quantised.weight.float() * quantised.scale)
    again = bridge.boot_transformers("llama", hf_model=plain, tokenizer=zoo.tokenizer(), device="cpu")
    dequantised = tlsv.trace(again, tokens, TARGET)
    assert dequantised.log_prob == pytest.approx(trace.log_prob, abs=1e-5)
    assert len(dequantised.heads()) == 8
