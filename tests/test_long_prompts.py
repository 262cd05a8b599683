"""A long prompt's run keeps one position's rows: everything that is read of it is what a full cache gives."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import view
from tl_subvalues.model_view.long_prompts import RowsOfRun

TARGET, POSITION = 5, 5
FAMILIES = ("gpt2", "llama", "gemma2", "gemma3", "olmo2", "gptj", "bloom", "mixtral", "qwen2_moe", "lfm2")


def both(model: Any, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[tlsv.Trace, tlsv.Trace]:
    """The same prompt with all activations kept, and as if it were long."""
    full = tlsv.trace(model, tokens, TARGET, position=POSITION)
    monkeypatch.setattr(view, "LONG", 0)
    rows = tlsv.trace(model, tokens, TARGET, position=POSITION)
    assert isinstance(rows.cache.cache_dict, RowsOfRun)
    assert not isinstance(full.cache.cache_dict, RowsOfRun)
    return full, rows


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-9, atol=1e-11)


def same_or_refused(ask: Callable[[tlsv.Trace], pd.DataFrame], full: tlsv.Trace, rows: tlsv.Trace) -> None:
    try:
        wanted = ask(full)
    except UnsupportedModelError as error:
        reason = str(error)
    else:
        same(ask(rows), wanted)
        return
    with pytest.raises(UnsupportedModelError) as raised:
        ask(rows)
    assert str(raised.value) == reason


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_scores_and_effects(family: str, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the trace's position, at a head's source position, and at all positions."""
    full, rows = both(zoo.model(family, dtype=torch.float64), tokens, monkeypatch)
    assert rows.log_prob == pytest.approx(full.log_prob, abs=1e-12)
    for table in ("layers", "heads", "head_positions", "ffn_neurons", "attn_neurons"):
        same(getattr(rows, table)(), getattr(full, table)())
    neurons = [full.ffn_neurons(top=3), full.attn_neurons(top=3)]
    for label in [*neurons[0]["label"], *neurons[1]["label"]]:
        same_or_refused(lambda trace, label=label: trace.activations(label, by="head"), full, rows)
    for rule in ("gradient", "frozen"):
        same_or_refused(lambda trace, rule=rule: trace.effects(top=20, rule=rule), full, rows)
    same(rows.vocabulary(neurons[0]["label"].tolist()), full.vocabulary(neurons[0]["label"].tolist()))


@pytest.mark.hooked
@pytest.mark.parametrize("variant", sorted(zoo.HOOKED))
def test_hooked_transformer(variant: str, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on HookedTransformer."""
    full, rows = both(zoo.hooked(variant), tokens, monkeypatch)
    same(rows.heads(), full.heads())
    same(rows.ffn_neurons(top=9), full.ffn_neurons(top=9))


def test_memory_is_one_row_of_each_pattern(tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a run grows with the prompt, not with its square; the pattern is one query's."""
    monkeypatch.setattr(view, "LONG", 0)
    model = zoo.model("llama")
    sizes = []
    for n in (20, 40):
        rows = tlsv.trace(model, torch.arange(n)[None] % 50 + 3, TARGET).cache.cache_dict
        kept = {**rows._everywhere, **rows._rows[n - 1]}
        assert all(t.shape[2] == 1 for name, t in kept.items() if name.endswith("hook_pattern"))
        sizes.append(sum(t.numel() for t in kept.values()))
    assert sizes[1] <= 2 * sizes[0]


def test_what_a_user_reads_in_the_cache_is_whole(tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trace.cache` has every entry at every position, as a full cache has."""
    full, rows = both(zoo.model("llama"), tokens, monkeypatch)
    assert set(rows.cache.keys()) == set(full.cache.keys())
    for name in full.cache.keys():  # noqa: SIM118 (an ActivationCache iterates otherwise)
        torch.testing.assert_close(rows.cache[name], full.cache[name])


def test_its_cache_is_taken_for_another_target_and_position(
    tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cache=trace.cache`, as for any other trace: the rows of that position are made."""
    model = zoo.model("llama", dtype=torch.float64)
    _, rows = both(model, tokens, monkeypatch)
    for position in (POSITION, 3):
        found = tlsv.trace(model, tokens, 9, position=position, cache=rows.cache)
        monkeypatch.setattr(view, "LONG", 1 << 28)
        wanted = tlsv.trace(model, tokens, 9, position=position)
        monkeypatch.setattr(view, "LONG", 0)
        assert found.log_prob == pytest.approx(wanted.log_prob, abs=1e-12)
        same(found.ffn_neurons(top=5), wanted.ffn_neurons(top=5))
        same(found.attn_neurons(top=5), wanted.attn_neurons(top=5))


def test_a_run_that_cannot_be_made_again_is_refused(tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hook that was not there, what is read elsewhere would be another run's."""
    model = zoo.model("llama")
    _, rows = both(model, tokens, monkeypatch)
    model.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value * 2)
    try:
        with pytest.raises(ValueError, match="trace the prompt again"):
            rows.effects(rule="frozen")
    finally:
        model.reset_hooks()
    assert len(rows.effects(top=5, rule="frozen")) == 5


def test_nan_is_told_by_its_position(tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the position that is asked about is fine."""
    monkeypatch.setattr(view, "LONG", 0)
    model = zoo.bridge("llama")
    with torch.no_grad():
        model.embed.original_component.weight[tokens[0, 2]] = torch.nan
    with pytest.raises(ValueError, match=r"entering layer 0 .* position 2"):
        tlsv.trace(model, tokens, TARGET, position=1)
