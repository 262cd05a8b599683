"""Several prompts at once give the same numbers as one at a time."""

import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view import view_of

PROMPTS = ["w3 w4 w5 w6", "w7", "w8 w9 w10 w11 w12 w13", "w14 w15 w16 w17"]
TARGETS = ["w5", 6, "w7", "w8"]
FAMILIES = ("gpt2", "llama", "opt", "bloom", "gptj", "gemma2", "gemma3", "olmo2", "granite", "mpt", "falcon_alibi")
TOLERANCE = 1e-4  # nats; padding changes the order of summation


def assert_same(together: pd.DataFrame, alone: pd.DataFrame) -> None:
    """The same labels have the same numbers."""
    together, alone = (t.set_index("label").sort_index() for t in (together, alone))
    assert together.index.equals(alone.index)
    for column in ("log_prob_increase", "prob_increase"):
        assert together[column].to_numpy() == pytest.approx(alone[column].to_numpy(), abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_different_lengths(family: str, scale: str) -> None:
    """Left padding, in families with learned, rotary and ALiBi positions: every table as if traced alone."""
    model = zoo.model(family)
    batch = tlsv.trace_batch(model, PROMPTS, TARGETS, scale=scale, prepend_bos=False, batch_size=3)
    sweeps = {"ffn_neurons": batch.ffn_neurons(top=None), "attn_neurons": batch.attn_neurons(top=None)}
    for number, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        alone = tlsv.trace(model, prompt, target, scale=scale, prepend_bos=False)
        assert batch[number].log_prob == pytest.approx(alone.log_prob, abs=TOLERANCE)
        assert (batch[number].str_tokens, batch[number].rank) == (alone.str_tokens, alone.rank)
        for table in ("layers", "heads", "head_positions"):
            assert_same(getattr(batch[number], table)(), getattr(alone, table)())
        for table, swept in sweeps.items():
            own = swept[swept["prompt"] == number].drop(columns="prompt")
            assert_same(own, getattr(alone, table)(top=None))
            assert own["log_prob_increase"].is_monotonic_decreasing


@pytest.mark.hooked
@pytest.mark.parametrize("variant", ["ln_gelu", "rotary_gated_grouped", "gemma2_like"])
def test_hooked_transformer(variant: str) -> None:
    """The same on HookedTransformer."""
    model = zoo.hooked(variant)
    batch = tlsv.trace_batch(model, PROMPTS, TARGETS, prepend_bos=False)
    for number, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        alone = tlsv.trace(model, prompt, target, prepend_bos=False)
        assert_same(batch[number].heads(), alone.heads())


def test_a_model_that_cannot_be_padded_is_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the padded run of the shortest prompt differs from its run alone, no padded number is used."""
    model = zoo.model("gpt2")
    run = type(model).run_with_cache

    def forgets_the_mask(self: object, tokens: torch.Tensor, **keywords: object) -> object:
        keywords.pop("attention_mask", None)
        return run(self, tokens, **keywords)

    monkeypatch.setattr(type(model), "run_with_cache", forgets_the_mask)
    batch = tlsv.trace_batch(model, PROMPTS, TARGETS, prepend_bos=False)
    for trace, prompt, target in zip(batch, PROMPTS, TARGETS, strict=True):
        assert trace.log_prob == pytest.approx(tlsv.trace(model, prompt, target, prepend_bos=False).log_prob, abs=1e-6)


def test_top_k_is_each_prompt_s_own_search() -> None:
    """With top=k every prompt has its k rows and its certificate."""
    batch = tlsv.trace_batch(zoo.model("llama"), PROMPTS, TARGETS)
    table = batch.ffn_neurons(top=5)
    assert table.groupby("prompt").size().tolist() == [5] * 4
    assert len(table.attrs["certificates"]) == 4
    assert_same(table[table["prompt"] == 2], batch[2].ffn_neurons(top=5))


def test_doubtful_sums_are_done_again() -> None:
    """Where the shared sweep's sums overflow, the exact evaluation takes over: no NaN, the same numbers."""
    model = zoo.bridge("llama")
    with torch.no_grad():
        model.original_model.model.layers[0].mlp.down_proj.weight.mul_(100.0)
        model.unembed.original_component.weight.mul_(10.0)
    batch = tlsv.trace_batch(model, PROMPTS[:2], TARGETS[:2], prepend_bos=False)
    swept = batch.ffn_neurons(top=None)
    for number in (0, 1):
        alone = batch[number].ffn_neurons(top=None).set_index("label")["log_prob_increase"]
        own = swept[swept["prompt"] == number].set_index("label")["log_prob_increase"]
        assert own[alone.index].to_numpy() == pytest.approx(alone.to_numpy(), rel=1e-4, abs=1e-3)


def test_bad_input_names_the_prompt() -> None:
    """Which prompt is bad, and why; as many targets as prompts."""
    model = zoo.model("llama")
    with pytest.raises(ValueError, match=r"prompt 1: .*empty"):
        tlsv.trace_batch(model, ["w3", ""], ["w4", "w5"])
    with pytest.raises(ValueError, match=r"prompt 0: .*2 tokens"):
        tlsv.trace_batch(model, ["w3"], ["w4 w5"])
    with pytest.raises(ValueError, match="as many targets"):
        tlsv.trace_batch(model, ["w3", "w4"], ["w5"])
    with pytest.raises(ValueError, match="list of prompts"):
        tlsv.trace_batch(model, [], [])


def test_padding_is_cut_off() -> None:
    """A prompt's cache out of a batch has its own positions and nothing else."""
    view = view_of(zoo.model("gpt2"))
    prompts = [torch.tensor([3, 4, 5]), torch.tensor([6])]
    for prompt, (logits, cache) in zip(prompts, view.run_batch(prompts, [1, 0]).runs, strict=True):
        assert logits.ndim == 1
        assert cache["blocks.0.hook_resid_pre"].shape[:2] == (1, len(prompt))
        assert cache["blocks.1.attn.hook_pattern"].shape[-2:] == (len(prompt), len(prompt))


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The prompts as ids padded on one side, their mask, and each prompt's own ids."""
    own = [torch.tensor([int(word[1:]) for word in prompt.split()]) for prompt in PROMPTS]
    longest = max(len(ids) for ids in own)
    tokens, mask = torch.ones(len(own), longest, dtype=torch.long), torch.zeros(len(own), longest, dtype=torch.long)
    for row, ids in enumerate(own):
        place = slice(longest - len(ids), None) if side == "left" else slice(len(ids))
        tokens[row, place], mask[row, place] = ids, 1
    return tokens, mask, own


def core(model, cache, row: int, last: int, first: int, target: int) -> dict[str, torch.Tensor]:
    """What the functional core says of one prompt of a cache: subvalues, log-probs, increases at its last position."""
    found = {}
    scale = cache["ln_final.hook_scale"]
    for layer in range(2):
        for by in ("head", "head_position", "neuron"):
            stack = tlsv.attn_subvalues(model, cache, layer, by=by, pos_slice=last)[:, row]
            if by != "head":  # sources outside the prompt are the padding's, and get no weight
                sources = scale.shape[1]
                stack = stack.unflatten(0, (-1, sources) if by == "head_position" else (sources, -1))
                stack = stack.movedim(1 if by == "head_position" else 0, 0)
                inside = torch.zeros(sources, dtype=torch.bool)
                inside[first : last % sources + 1] = True
                assert stack[~inside].abs().max().item() < 1e-9 if (~inside).any() else True
                stack = stack[inside]
            found[f"{layer} {by}"] = stack
        x = cache[f"blocks.{layer}.hook_resid_mid"][row, last][None]
        neurons = tlsv.ffn_subvalues(model, cache, layer, pos_slice=last)[:, row][:, None]
        for kind, used in (("frozen", scale[row, last][None]), ("recomputed", "recomputed")):
            readout = tlsv.Readout(model, scale=used)
            found[f"{layer} {kind}"] = tlsv.log_prob_increase(readout, x, neurons, target)[:, 0]
            found[f"{layer} {kind} log-probs"] = readout.log_probs(x)[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma2", pytest.param("rotary_gated_grouped", marks=pytest.mark.hooked)]
)
def test_a_padded_batch_of_the_user_s_own(name: str, side: str) -> None:
    """A cache of several prompts, padded on either side and masked: each prompt's numbers at its own last position."""
    model = zoo.hooked(name) if name in zoo.HOOKED else zoo.model(name)
    tokens, mask, own = padded(side)
    if name in zoo.HOOKED:
        model.tokenizer.padding_side = side
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    for row, (ids, target) in enumerate(zip(own, (5, 6, 7, 8), strict=True)):
        _, alone = model.run_with_cache(ids[None])
        first = tokens.shape[1] - len(ids) if side == "left" else 0
        together = core(model, cache, row, first + len(ids) - 1, first, target)
        for what, expected in core(model, alone, 0, len(ids) - 1, 0, target).items():
            torch.testing.assert_close(together[what], expected, atol=TOLERANCE, rtol=TOLERANCE, msg=what)


@pytest.mark.slow
def test_a_batch_of_increases_is_its_rows() -> None:
    """`log_prob_increase` over a batch and positions reads every row at its own scale, padding beside it or not."""
    model = zoo.hooked("ln_gelu") if zoo.has_hooked_transformer() else zoo.model("gpt2")
    tokens, mask, own = padded("right")
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    scale, x = cache["ln_final.hook_scale"], cache["blocks.1.hook_resid_mid"]
    stack = tlsv.ffn_subvalues(model, cache, 1, pos_slice=None, neuron_slice=(0, 6))
    together = tlsv.log_prob_increase(tlsv.Readout(model, scale=scale), x, stack, 9)
    assert together.shape == (6, len(own), tokens.shape[1])
    for row, ids in enumerate(own):
        for at in range(len(ids)):
            readout = tlsv.Readout(model, scale=scale[row, at])
            alone = tlsv.log_prob_increase(readout, x[row, at], stack[:, row, at], 9)
            torch.testing.assert_close(together[:, row, at], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(1, 10, 40), (10, 40), (1, 17, 40)])
def test_positions_that_depend_on_the_length(lengths: tuple[int, ...]) -> None:
    """Phi 3's long positions begin at 16 tokens here: shorter prompts beside longer ones are read as they are alone."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    model = zoo.bridge("phi3", original_max_position_embeddings=16, rope_parameters=rope, rope_scaling=rope)
    prompts = [torch.randint(3, 61, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    batch = tlsv.trace_batch(model, prompts, [5] * len(prompts))
    for traced, prompt in zip(batch, prompts, strict=True):
        assert traced.log_prob == pytest.approx(tlsv.trace(model, prompt, 5).log_prob, abs=1e-5)
    whole = tlsv.trace_answer(model, prompts[-1][:10], prompts[-1][10:30])
    for number in (0, 5, 19):
        alone = tlsv.trace(model, prompts[-1][: 10 + number], int(prompts[-1][10 + number]))
        assert whole[number].log_prob == pytest.approx(alone.log_prob, abs=1e-5)
