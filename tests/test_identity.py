"""A record of results is taken up by the model that made it, and by no other."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view import ModelView, view_of
from tl_subvalues.model_view import identity as identities

TESTS = Path(__file__).parent
FACTS = pd.DataFrame({"prompt": ["w3 w4 w5", "w7 w8"], "target": ["w6", "w9"]})


def model(**overrides: Any) -> Any:
    """A tiny Llama, as this TransformerLens loads it."""
    if zoo.has_bridge():
        cls = zoo.bridge_class()
        hf = zoo.hf_model("llama", **overrides)
        return cls.boot_transformers("llama", hf_model=hf, tokenizer=zoo.tokenizer(), device="cpu").eval()
    return zoo.from_folder(zoo.hf_model("llama", **overrides), "llama")


def parameter(of: Any, *parts: str) -> torch.Tensor:
    """The first parameter whose name holds all of these."""
    return next(p for name, p in of.named_parameters() if all(part in name for part in parts))


def swap_neurons(of: Any) -> None:
    """Two neurons of layer 0 change places: every output stays, their labels do not."""
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj") if zoo.has_bridge() else ("W_gate", "W_in", "W_out"):
            weight = parameter(of, "0", "mlp", name)
            axis = 0 if (name in ("gate_proj", "up_proj", "W_out")) else 1
            order = torch.arange(weight.shape[axis])
            order[[3, 5]] = order[[5, 3]]
            weight.copy_(weight.index_select(axis, order))


def other_bits(of: Any) -> None:
    """One weight's last bit."""
    with torch.no_grad():
        parameter(of, "mlp").view(-1).view(torch.int32)[7] ^= 1


def other_buffer(of: Any) -> None:
    """A number that is no parameter, of the rotary positions."""
    next(buffer for name, buffer in of.named_buffers() if "inv_freq" in name or "rotary_sin" in name).view(-1)[0] += 1


def other_eps(of: Any) -> None:
    """In the norms themselves, not in a configuration."""
    for module in of.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-3
    of.cfg.eps = 1e-3


CHANGES: dict[str, tuple[dict[str, Any], Callable[[Any], None] | None, str]] = {
    "two neurons swapped": ({}, swap_neurons, "weights"),
    "one bit": ({}, other_bits, "weights"),
    "a buffer": ({}, other_buffer, "weights"),
    "rms_norm_eps": ({"rms_norm_eps": 1e-5}, None, "configuration"),
    "rope_theta": ({"rope_theta": 20_000.0}, None, "weights, configuration"),
    "eps of the norms": ({}, other_eps, "configuration"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_another_model_does_not_take_a_record_up(change: str, tmp_path: Path) -> None:
    """Refused, naming what differs, and the record is left as it was; the model that made it goes on."""
    overrides, edit, differing = CHANGES[change]
    path = tmp_path / "record.jsonl"
    arguments: dict[str, Any] = {"ks": (2,), "rankings": ["norm"], "prepend_bos": False, "record": path}
    first = tlsv.evaluate(model(), FACTS, **arguments)
    whole = path.read_bytes()
    other = model(**overrides)
    if edit is not None:
        edit(other)
    with pytest.raises(ValueError, match=f"was made with another {differing}"):
        tlsv.evaluate(other, FACTS, **arguments)
    assert path.read_bytes() == whole
    pd.testing.assert_frame_equal(tlsv.evaluate(model(), FACTS, **arguments), first, check_exact=True)


@pytest.mark.parametrize("name", ["torch", "transformers", "transformer_lens"])
def test_other_versions_do_not_take_a_record_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release may compute another model; torch's build for a device may not."""
    one = model()
    mine, version = view_of(one).checksum(), importlib.metadata.version

    def later(wanted: str) -> str:
        return "99.0.1" if wanted == name else version(wanted)

    monkeypatch.setattr(importlib.metadata, "version", later)
    assert {key for key, value in view_of(one).checksum().items() if value != mine[key]} == {name}
    monkeypatch.setattr(importlib.metadata, "version", lambda wanted: f"{version(wanted).partition('+')[0]}+cu999")
    assert view_of(one).checksum() == mine


@pytest.mark.slow
def test_the_same_model_is_the_same_everywhere() -> None:
    """After a trace, when moved, in another process (whose order of sets is another)."""
    one = model()
    mine = view_of(one).checksum()
    tlsv.trace(one, "w3 w4 w5", "w6").ffn_neurons(3)
    one.to("cpu")
    assert view_of(one).checksum() == mine == view_of(model()).checksum()
    code = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import conftest, test_identity as t;"
        "print(t.view_of(t.model()).checksum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == str(mine)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_change_with_the_prompt_are_left_out(kind: str) -> None:
    """Their frequencies are those of the last prompt, in the same model."""
    if not zoo.has_bridge():
        with pytest.raises(tlsv.UnsupportedModelError, match="rotary positions"):
            model(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
        return
    scaling: dict[str, Any] = {"rope_type": kind, "factor": 2.0}
    if kind == "longrope":
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    one = model(rope_scaling=scaling, max_position_embeddings=16)
    mine = view_of(one).checksum()
    before = [buffer.clone() for buffer in one.buffers()]
    one(torch.randint(3, 61, (1, 40)))
    assert any(not torch.equal(old, new) for old, new in zip(before, one.buffers(), strict=True))
    assert view_of(one).checksum() == mine


def test_without_a_record_no_weight_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reading them all takes seconds in a large model."""
    monkeypatch.setattr(ModelView, "checksum", lambda self: pytest.fail("all weights were read"))
    tlsv.evaluate(model(), FACTS, ks=(2,), rankings=["norm"], prepend_bos=False)
    tlsv.collect(model(), FACTS, top=3, prepend_bos=False)


def test_it_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the parts and however a weight lies in memory, the digest is that of its bytes."""

    class Two(torch.nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.a, self.scalar = torch.nn.Parameter(weight), torch.nn.Parameter(torch.tensor(2.0))
            self.short = torch.nn.Parameter(weight.detach().to(torch.bfloat16))
            self.register_buffer("mask", weight.detach() > 0)
            self.register_buffer("empty", torch.zeros(0, 3))

    weight = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    whole = identities._digest_of_tensors(Two(weight))
    monkeypatch.setattr(identities, "_CHUNK", 256)
    assert identities._digest_of_tensors(Two(weight)) == whole
    assert identities._digest_of_tensors(Two(weight.T.contiguous().T)) == whole
    assert identities._digest_of_tensors(Two(weight.flip(0))) != whole
    assert max(piece.numel() for piece in identities._pieces(weight)) == 60
