"""Forward passes leave a model as it was: hooks, threads, autocast; and unembed what is read."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import zoo
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view import ModelView
from tl_subvalues.model_view.running import unembedded_at


def hooks_left(model: Any) -> list[str]:
    """Names of the hook points that still have a function, TransformerLens's or torch's; and the unembedding."""
    found = [
        name
        for name, point in model.hook_dict.items()
        if point.fwd_hooks or point.bwd_hooks or point._forward_hooks or point._backward_hooks
    ]
    return [*found, *["unembed"] * bool(model.unembed._forward_pre_hooks)]


@contextmanager
def interrupted(model: Any, number: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C just after a model was given its hook of that number, before TransformerLens takes note of it."""
    points = type(model.hook_dict["blocks.0.hook_resid_pre"])
    add, count = points.add_hook, 0

    def add_and_stop(self: Any, *args: Any, **keywords: Any) -> Any:
        nonlocal count
        handle = add(self, *args, **keywords)
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return handle

    with patch.context() as patched:
        patched.setattr(points, "add_hook", add_and_stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def _see(value: Tensor, hook: Any) -> None:
    """A hook of the model's owner."""


FACTS = pd.DataFrame({"prompt": [[3, 4, 5], [6, 7]], "target": [8, 9]})


@pytest.mark.parametrize("what", ["trace", "ablate", "evaluate"])
def test_ctrl_c_leaves_no_hook(what: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it comes, the model's hooks are as before, those of its owner still there."""
    model = zoo.model("llama")
    trace = tlsv.trace(model, tokens, 5)
    calls: dict[str, Callable[[], Any]] = {
        "trace": lambda: tlsv.trace(model, tokens, 5),
        "ablate": lambda: trace.ablate(["L0N3", "L1H2", "L1H1@2", "0_mlp_out"]),
        "evaluate": lambda: tlsv.evaluate(model, FACTS, ks=[3], rankings="gradient_times_activation"),
    }
    before = calls[what]()
    owner = model.hook_dict["blocks.0.hook_resid_pre"]
    owner.add_hook(_see)
    kept = list(owner.fwd_hooks)
    for number in (1, 2, 3):
        with interrupted(model, number, monkeypatch):
            calls[what]()
        assert hooks_left(model) == [name for name, point in model.hook_dict.items() if point is owner], (
            f"after an interrupt at hook {number}"
        )
        assert owner.fwd_hooks == kept
        assert model.context_level == 0
    model.reset_hooks()
    after = calls[what]()
    assert after.log_prob == before.log_prob if what == "trace" else after.equals(before)


def test_ctrl_c_inside_the_model(tokens: Tensor) -> None:
    """An interrupt from within the forward pass, as it mostly comes."""
    model = zoo.model("llama")
    trace = tlsv.trace(model, tokens, 5)

    def stop(value: Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", stop)]), pytest.raises(KeyboardInterrupt):
        trace.ablate("L0N3")
    assert hooks_left(model) == []


@pytest.mark.slow
def test_two_threads_take_turns(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never are two threads inside one model, where the hooks of one would act in the other's run."""
    model = zoo.model("llama")
    trace = tlsv.trace(model, tokens, 5)
    alone = trace.ablate("1_mlp_out")
    run, inside, both, met = model.run_with_hooks, threading.Semaphore(1), threading.Event(), []

    def watched(*args: Any, **keywords: Any) -> Any:
        if not inside.acquire(blocking=False):
            met.append(threading.get_ident())
            both.set()
            return run(*args, **keywords)
        both.wait(0.2)  # for the other, should it come
        try:
            return run(*args, **keywords)
        finally:
            inside.release()

    monkeypatch.setattr(model, "run_with_hooks", watched)
    found: list[pd.Series] = []
    threads = [threading.Thread(target=lambda: found.append(trace.ablate("1_mlp_out"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert met == []
    assert len(found) == 2
    assert all(one.equals(alone) for one in found)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_inside_autocast(family: str, tokens: Tensor) -> None:
    """The same model is run inside autocast as outside, to the bit."""
    model = zoo.bridge(family)

    def made() -> list[Any]:
        trace = tlsv.trace(model, tokens, 5)
        batch = tlsv.trace_batch(model, [tokens, tokens[:, :3]], [5, 6])
        return [trace.heads(), trace.ffn_neurons(5), trace.ablate("L1H2").to_frame(), batch.layers()]

    outside = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made()
    assert all(a.equals(b) for a, b in zip(outside, inside, strict=True))


def test_evaluation_inside_autocast() -> None:
    """Gradients and ablations too."""
    model = zoo.model("llama")
    rankings = ["norm", "gradient_times_activation"]
    outside = tlsv.evaluate(model, FACTS, ks=[3], rankings=rankings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tlsv.evaluate(model, FACTS, ks=[3], rankings=rankings).equals(outside)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", pytest.param("ln_gelu", marks=pytest.mark.hooked)])
def test_what_is_read_is_unembedded(family: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One position of each prompt, a second where prompts are read elsewhere than at their end; never all of them."""
    model = zoo.hooked(family) if family in zoo.HOOKED else zoo.bridge(family)
    shapes: list[tuple[int, ...]] = []

    forward = type(model.unembed).forward

    def counted(self: Any, x: Tensor, *rest: Any, **keywords: Any) -> Any:
        if x.ndim == 3:
            shapes.append(tuple(x.shape[:2]))
        return forward(self, x, *rest, **keywords)

    monkeypatch.setattr(type(model.unembed), "forward", counted)

    def seen() -> list[tuple[int, ...]]:
        found, shapes[:] = list(shapes), []
        return found

    trace = tlsv.trace(model, tokens, 5, position=3)
    assert seen() == [(1, 1)]
    batch = tlsv.trace_batch(model, [tokens, tokens.flip(1)], [5, 6])
    assert seen() == [(2, 1)]
    tlsv.trace_batch(model, [tokens, tokens[:, :3]], [5, 6], position=-2)
    assert seen() == [(4, 1), (1, 1)]  # and the padded one alone, which answers the same
    trace.ablate("L0H1")
    assert seen() == [(2, 1)]
    batch.effects(top=3)
    assert seen() == [(2, 1)]
    tlsv.RANKINGS["integrated_gradients"].top(trace, 3)
    assert seen() == [(1, 1), (8, 1)]  # all steps at once
    whole = model(tokens)[0, 3].double().log_softmax(-1)[5]
    assert trace.log_prob == pytest.approx(float(whole.detach()), abs=1e-5)


def test_logits_from_elsewhere_are_picked_from() -> None:
    """A model that makes logits without its unembedding module, or of one long row, gives the same places."""
    x = torch.arange(60.0).reshape(2, 5, 6)
    places = [(0, 1), (1, 4), (1, 0)]
    expected = torch.stack([x[row, position] for row, position in places])

    class Elsewhere(torch.nn.Module):
        def __init__(self, has_module: bool) -> None:
            super().__init__()
            if has_module:
                self.unembed = torch.nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.unembed(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if hasattr(self, "unembed") else x

    for model in (Elsewhere(True), Elsewhere(False)):
        with unembedded_at(model, [], (2, 5), places) as at:
            assert torch.equal(at(model(x)), expected)
        with unembedded_at(model, [], (2, 5), [(0, 2), (1, 2)]) as at:
            assert torch.equal(at(model(x)), x[:, 2])


def test_the_owner_s_hooks_see_all_positions(tokens: Tensor) -> None:
    """What is kept or changed where a model unembeds is of every position, and a hook may run the model itself."""
    model = zoo.bridge("llama")
    whole, seen = model(tokens), []

    def see(value: Tensor, hook: Any) -> None:
        seen.append(value.clone())

    def run_too(value: Tensor, hook: Any) -> None:
        if not seen:
            seen.append(torch.empty(0))  # not once more
            seen[:] = [model(tokens)]

    for name, hook in (("unembed.hook_out", see), ("blocks.0.hook_resid_pre", run_too)):
        seen.clear()
        with model.hooks(fwd_hooks=[(name, hook)]):
            trace = tlsv.trace(model, tokens, 5, position=3)
        torch.testing.assert_close(seen[0], whole)
        assert trace.log_prob == tlsv.trace(model, tokens, 5, position=3).log_prob
    seen.clear()
    with model.unembed.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        trace.ablate("L0H1")
    assert seen[0].shape[1] == tokens.shape[1]

    def last_only(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, -1] *= torch.linspace(-3, 3, value.shape[-1])
        return value

    ranking = tlsv.RANKINGS["integrated_gradients"]
    plain = ranking(trace)
    with model.hooks(fwd_hooks=[("unembed.hook_out", last_only)]):
        torch.testing.assert_close(ranking(trace), plain)


def test_another_thread_s_run_is_left_alone(tokens: Tensor) -> None:
    """A plain call of the model in another thread, in the middle of a trace."""
    model = zoo.bridge("llama")
    whole = model(tokens)
    found: list[Tensor] = []

    with unembedded_at(model, [], tuple(tokens.shape), [(0, 3)]) as at:
        thread = threading.Thread(target=lambda: found.append(model(tokens)))
        thread.start()
        thread.join(timeout=60)
        own = model(tokens)
        assert own.shape[:2] == (1, 1)
        torch.testing.assert_close(at(own), whole[:, 3])
    torch.testing.assert_close(found[0], whole)


def test_steps_that_do_not_fit_together(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integrated gradients take as few at a time as there is memory for."""
    trace, ranking = tlsv.trace(zoo.bridge("llama"), tokens, 5), tlsv.RANKINGS["integrated_gradients"]
    expected, run, rows = ranking(trace), ModelView.logits, list[int]()

    def small(self: ModelView, tokens: Tensor, *rest: Any, **padding: Any) -> Tensor:
        rows.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, tokens, *rest, **padding)

    monkeypatch.setattr(ModelView, "logits", small)
    torch.testing.assert_close(ranking(trace), expected)
    assert rows == [1, 8, 4, 2, 2, 2, 2]


def test_logits_of_another_shape_are_refused() -> None:
    """What makes something else of an unembedded position than one row of logits, by its name and in its own words."""
    model = zoo.model("llama")

    class Doubling(type(model)):  # type: ignore[misc]
        def run_with_cache(self, *args: Any, **keywords: Any) -> Any:
            logits, cache = super().run_with_cache(*args, **keywords)
            return logits.repeat(1, 2, 1), cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "__class__", Doubling)
        with pytest.raises(UnsupportedModelError, match=r"logits of shape \(1, 2, \d+\) where 1 positions") as told:
            tlsv.trace(model, torch.tensor([3, 4, 5]), 5)
    assert "run_with_cache fails" not in str(told.value)
