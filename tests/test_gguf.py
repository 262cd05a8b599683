"""GGUF files: loaded as the model that their tensors came from, or refused in one sentence; kept by their digest."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import gguf_files, zoo

import tl_subvalues as tlsv
from tl_subvalues.command import cli
from tl_subvalues.loading import ggufs, models

pytestmark = pytest.mark.any_release

# Gemma's files do not say what attention is scaled by: transformers takes its default.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 256},
    "gemma3": {"query_pre_attn_scalar": 256},
}
TOKENS = [3, 9, 17, 30, 4]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache: Path) -> list[Path]:
    """The folders in the cache."""
    return sorted(path for path in cache.iterdir() if not path.name.endswith(".lock")) if cache.is_dir() else []


def log_probs(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(torch.tensor([TOKENS])).logits[0, -1].float().log_softmax(-1)


def traced(model: Any) -> torch.Tensor:
    """All words' log-probabilities, each read off the model's own run, and the target's off a trace."""
    with torch.no_grad():
        found = model(torch.tensor([TOKENS]))[0, -1].float().log_softmax(-1)
    assert tlsv.trace(model, TOKENS, 6).log_prob == pytest.approx(found[6].item(), abs=1e-4)
    return found


@pytest.mark.each_release
@pytest.mark.parametrize(
    ("family", "tied"),
    [("llama", True), ("llama", False), ("qwen2", False), ("gemma3", True)]
    + [pytest.param(*one, marks=pytest.mark.slow) for one in (("mistral", False), ("qwen3", True), ("gemma2", True))],
)
def test_a_file_gives_the_model_that_its_tensors_came_from(family: str, tied: bool, tmp_path: Path) -> None:
    """Log-probabilities of all words; converted once, however the file is called."""
    if family in ("qwen3", "gemma2", "gemma3") and not zoo.has_bridge():
        pytest.skip("TransformerLens 2 does not convert it from a folder")
    hf = zoo.hf_model(family, tie_word_embeddings=tied, **FAMILIES[family])
    file = gguf_files.write(tmp_path / "a.GGUF", family, hf, name="Mistral 7B" if family == "mistral" else "tiny")
    model = tlsv.load_model(str(file), device="cpu")
    torch.testing.assert_close(traced(model), log_probs(hf), atol=2e-5, rtol=0)
    assert model.cfg.model_name == "a"
    assert len(tlsv.trace(model, TOKENS, 6).heads()) == 8
    assert tlsv.trace(model, TOKENS, 6).ffn_neurons(top=3)["log_prob_increase"].is_monotonic_decreasing


def test_half_precision_and_quantised_files(tmp_path: Path) -> None:
    """Weights of a half-precision file are the rounded ones, in the dtype asked for."""
    hf = zoo.hf_model("llama")
    file = gguf_files.write(tmp_path / "a.gguf", "llama", hf, dtype=np.float16)
    model = tlsv.load_model(str(file), device="cpu", dtype=torch.float64)
    assert next(model.parameters()).dtype == torch.float64
    for parameter in hf.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    torch.testing.assert_close(traced(model), log_probs(hf), atol=2e-5, rtol=0)


@pytest.mark.each_release
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_tokenizer_is_the_file_s(kind: str, tmp_path: Path) -> None:
    """Words, and whether a prompt gets a BOS: as the file says, else as llama.cpp's default has it."""
    family = "gemma3" if kind == "llama" else "llama"
    hf = zoo.hf_model(family, **FAMILIES[family])
    if kind == "llama" and not zoo.has_bridge():
        pytest.skip("TransformerLens 2 does not convert Gemma 3 from a folder")
    words = {"a": 3, "c": 5}
    spaced = {" b": 31, " z": 55}
    # Without a word from the file, llama.cpp adds one for sentencepiece; for others it is TransformerLens's choice.
    for adds, expected in ((True, True), (False, False), *([(None, True)] if kind == "llama" else [])):

        def said(writer: Any, adds: bool | None = adds) -> None:
            if adds is not None:
                writer.add_add_bos_token(adds)

        file = gguf_files.write(tmp_path / f"{adds}.gguf", family, hf, tokenizer=kind, fields=said)
        model = tlsv.load_model(str(file), device="cpu")
        text = "a b z"
        ids = [words["a"], spaced[" b"], spaced[" z"]]
        trace = tlsv.trace(model, text, " b", prepend_bos=None)
        assert trace.tokens.tolist() == ([0, *ids] if expected else ids), adds
        assert trace.target_id == spaced[" b"]
        assert tlsv.trace(model, text, " b", prepend_bos=False).tokens.tolist() == ids


def test_what_lies_beside_a_file_is_not_read(tmp_path: Path) -> None:
    """A tokenizer and a configuration of another model: words, weights and sizes are the file's own."""
    hf = zoo.hf_model("llama", **FAMILIES["llama"])
    file = gguf_files.write(tmp_path / "a.gguf", "llama", hf)
    expected = tlsv.load_model(str(file), device="cpu")
    other = tmp_path / "beside"
    other.mkdir()
    zoo.hf_model("gpt2").config.save_pretrained(other)
    zoo.tokenizer().save_pretrained(other)
    changed = gguf_files.write(other / "b.gguf", "llama", zoo.hf_model("llama", seed=1, **FAMILIES["llama"]))
    model = tlsv.load_model(str(changed), device="cpu")
    for text in ("a", " b", "abc"):
        assert model.to_tokens(text).tolist() == expected.to_tokens(text).tolist(), text
    assert model.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert model.cfg.architecture == expected.cfg.architecture if zoo.has_bridge() else True


def test_it_is_converted_once_and_kept_by_its_content(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another name for the same content is the same model; another content under the same name is not."""
    hf, other = zoo.hf_model("qwen2"), zoo.hf_model("qwen2", seed=1)
    file = gguf_files.write(tmp_path / "a.gguf", "qwen2", hf)
    tlsv.load_model(str(file), device="cpu")
    (folder,) = kept(cache)
    inventory = json.loads((folder / "inventory.json").read_text(encoding="utf-8"))
    assert inventory.keys() == {path.name for path in folder.iterdir()} - {"inventory.json"}
    assert inventory.keys() >= {"config.json", "model.safetensors", "tokenizer.json", "source.json"}
    with monkeypatch.context() as patch:
        patch.setattr(ggufs, "convert", lambda *_: pytest.fail("converted again"))
        shutil.copy(file, tmp_path / "b.bin")
        torch.testing.assert_close(traced(tlsv.load_model(str(tmp_path / "b.bin"), device="cpu")), log_probs(hf))
        monkeypatch.chdir(tmp_path)
        tlsv.load_model("a.gguf", device="cpu")
    gguf_files.write(file, "qwen2", other)
    torch.testing.assert_close(traced(tlsv.load_model(str(file), device="cpu")), log_probs(other))
    assert len(kept(cache)) == 2


def test_another_model_s_folder_is_refused(tmp_path: Path, cache: Path) -> None:
    """Whole by its own inventory, and made from another file."""
    first = gguf_files.write(tmp_path / "a.gguf", "qwen2", zoo.hf_model("qwen2"))
    second = gguf_files.write(tmp_path / "b.gguf", "qwen2", zoo.hf_model("qwen2", seed=1))
    of_first, of_second = ggufs.gguf_folder(first), ggufs.gguf_folder(second)
    shutil.rmtree(of_first)
    shutil.copytree(of_second, of_first)
    with pytest.raises(OSError, match=r"made from another file; remove .* and run again\.$") as caught:
        tlsv.load_model(str(first))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["truncated", "one bit", "a file too many", "a file less", "inventory"])
def test_a_kept_folder_that_is_not_as_it_was_made_is_refused(how: str, tmp_path: Path) -> None:
    """As the embedded model's is; without it, the file is converted anew."""
    file = gguf_files.write(tmp_path / "a.gguf", "qwen2", zoo.hf_model("qwen2"))
    folder = ggufs.gguf_folder(file)
    weights = folder / "model.safetensors"
    if how == "truncated":
        os.truncate(weights, weights.stat().st_size - 1)
    elif how == "one bit":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif how == "a file too many":
        (folder / "adapter_config.json").write_text("{}")
    else:
        (folder / ("tokenizer.json" if how == "a file less" else "inventory.json")).unlink()
    with pytest.raises(OSError, match=r"is not as it was made: .*; remove .* and run again\.$"):
        tlsv.load_model(str(file))
    shutil.rmtree(folder)
    assert ggufs.gguf_folder(file) == folder


KILLED = """
import os, sys
from pathlib import Path
from tl_subvalues.loading import ggufs
def half(gguf, folder, *rest):
    folder.mkdir()
    (folder / "config.json").write_text("{")
    os.kill(os.getpid(), 9)
ggufs.convert = half
ggufs.gguf_folder(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_is_believed(tmp_path: Path, cache: Path) -> None:
    """What it left is removed by the next, which makes the folder whole; another file's work is left alone."""
    file = gguf_files.write(tmp_path / "a.gguf", "qwen2", hf := zoo.hf_model("qwen2"))
    assert subprocess.run([sys.executable, "-c", KILLED, str(file)]).returncode == -9
    (left,) = kept(cache)
    assert left.name.startswith(".making-gguf-")
    (cache / ".making-gguf-another-1").mkdir()
    torch.testing.assert_close(traced(tlsv.load_model(str(file), device="cpu")), log_probs(hf))
    assert not left.exists()
    assert (cache / ".making-gguf-another-1").exists()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, cache: Path, monkeypatch) -> None:
    """What is kept under a content's digest was made from that content."""
    file = gguf_files.write(tmp_path / "a.gguf", "qwen2", zoo.hf_model("qwen2"))
    convert = ggufs.convert

    def and_change(path: Path, *rest: Any) -> None:
        convert(path, *rest)
        path.write_bytes(path.read_bytes() + b"0")

    monkeypatch.setattr(ggufs, "convert", and_change)
    with pytest.raises(OSError, match="changed while it was read"):
        tlsv.load_model(str(file))
    assert kept(cache) == []


# Wrong files.


def cut_to(part: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * part))


def without(tensor: str) -> Callable[[Path], None]:
    return lambda path: gguf_files.write(path, "qwen2", zoo.hf_model("qwen2"), leave_out=tensor) and None


def saying(name: str, value: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        add = {str: "add_string", int: "add_uint32", float: "add_float32"}[type(value)]
        say = lambda writer: getattr(writer, add)(name, value)  # noqa: E731
        gguf_files.write(path, "qwen2", zoo.hf_model("qwen2"), fields=say)

    return write


def holding(tensor: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        more = lambda writer: writer.add_tensor(tensor, np.ones(4, np.float32))  # noqa: E731
        gguf_files.write(path, "qwen2", zoo.hf_model("qwen2"), fields=more)

    return write


def of_another_architecture(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"qwen2", b"qwen9"))


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (cut_to(0.0), ValueError, "is no GGUF file"),
        (cut_to(0.01), ValueError, "is torn"),
        (cut_to(0.3), ValueError, "is torn"),
        (cut_to(0.99), ValueError, "is torn"),
        (lambda path: path.write_bytes(b"PK" + path.read_bytes()), ValueError, "is no GGUF file"),
        (lambda path: path.unlink(), FileNotFoundError, "there is no such file"),
        (of_another_architecture, tlsv.UnsupportedModelError, "does not read this GGUF file of architecture qwen9"),
        (without("blk.1.ffn_up.weight"), tlsv.UnsupportedModelError, "layers.1.mlp.up_proj.weight among those"),
        (
            without("blk.0.attn_q.bias"),
            tlsv.UnsupportedModelError,
            "holds 19,520 numbers, .* has 19,552, .*q_proj.bias",
        ),
        (
            holding("blk.0.extra.weight"),
            tlsv.UnsupportedModelError,
            "holds 19,556 numbers, where the Qwen2.* has 19,552;",
        ),
        (holding("rope_freqs.weight"), tlsv.UnsupportedModelError, ""),
        (saying("split.count", 3), ValueError, "is one part of 3"),
        (saying("qwen2.rope.scaling.type", "yarn"), tlsv.UnsupportedModelError, "qwen2.rope.scaling.type yarn"),
        (saying("qwen2.logit_scale", 0.5), tlsv.UnsupportedModelError, "qwen2.logit_scale 0.5"),
    ],
)
def test_a_wrong_file_is_refused(
    damage: Callable[[Path], None], error: type[Exception], said: str, tmp_path: Path, cache: Path, capsys: Any
) -> None:
    """One sentence that names the file; nothing is kept; the command says it too."""
    file = gguf_files.write(tmp_path / "a.gguf", "qwen2", zoo.hf_model("qwen2"))
    damage(file)
    if said == "":  # factors that are all one change nothing
        tlsv.load_model(str(file), device="cpu")
        return
    with pytest.raises(error, match=said) as caught:
        tlsv.load_model(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert kept(cache) == []
    with pytest.raises(SystemExit) as left:
        cli.main(["trace", "a", "--target", "b", "--model", str(file)])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    file = gguf_files.write(tmp_path / "a.gguf", "qwen2", zoo.hf_model("qwen2"))
    monkeypatch.setattr(ggufs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"a GGUF file takes the package gguf: pip install 'tl-subvalues\[demo\]'"):
        models.load_model(str(file))


# What transformers' reader passes over.

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def rotary(scaling: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a configuration with scaled rotary positions, for either transformers."""
    import transformers

    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_theta": 500_000.0, **scaling}}
    return {"rope_theta": 500_000.0, "rope_scaling": scaling}


def with_positions(family: str, scaling: dict[str, Any]) -> Any:
    """Wider heads have wavelengths on all sides of the original context."""
    return zoo.hf_model(family, head_dim=32, **rotary(scaling))


@pytest.mark.each_release
def test_llama_3_s_rotary_positions(tmp_path: Path) -> None:
    """A file has them as a tensor, which transformers passes over; other factors are refused."""
    hf = with_positions("llama", LLAMA3) if zoo.has_bridge() else zoo.hf_model("llama", **rotary(LLAMA3))
    d_head = 32 if zoo.has_bridge() else 8
    factors = gguf_files.llama3_factors(LLAMA3, 500_000.0, d_head).numpy()
    assert len(set(factors.tolist())) > 2
    assert {1.0, 32.0} <= set(factors.tolist())
    write = lambda writer: writer.add_tensor("rope_freqs.weight", factors)  # noqa: E731
    model = tlsv.load_model(str(gguf_files.write(tmp_path / "a.gguf", "llama", hf, fields=write)), device="cpu")
    torch.testing.assert_close(traced(model), log_probs(hf), atol=2e-5, rtol=0)
    factors[1] = 1.5
    with pytest.raises(tlsv.UnsupportedModelError, match="not Llama 3's rotary positions"):
        tlsv.load_model(str(gguf_files.write(tmp_path / "b.gguf", "llama", hf, fields=write)), device="cpu")


@pytest.mark.each_release
@pytest.mark.parametrize("factor", [4.0, 1.0])
def test_linear_rotary_positions(factor: float, tmp_path: Path) -> None:
    """A field, which transformers passes over too."""
    scaling = {"rope_type": "linear", "factor": factor}
    hf = zoo.hf_model("qwen2", **rotary(scaling))

    def say(writer: Any) -> None:
        writer.add_string("qwen2.rope.scaling.type", "linear")
        writer.add_float32("qwen2.rope.scaling.factor", factor)

    file = str(gguf_files.write(tmp_path / "a.gguf", "qwen2", hf, fields=say))
    if not zoo.has_bridge():
        with pytest.raises(tlsv.UnsupportedModelError, match="rotary positions of the kind 'linear'"):
            tlsv.load_model(file, device="cpu")
        return
    torch.testing.assert_close(traced(tlsv.load_model(file, device="cpu")), log_probs(hf), atol=2e-5, rtol=0)


@pytest.mark.each_release
@pytest.mark.bridge
def test_gemma_2_s_soft_caps(tmp_path: Path) -> None:
    """Fields of the file, where transformers takes its defaults."""
    caps = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}
    hf = zoo.hf_model("gemma2", query_pre_attn_scalar=256, **caps)

    def say(writer: Any) -> None:
        for name, value in caps.items():
            writer.add_float32(f"gemma2.{name}", value)

    model = tlsv.load_model(str(gguf_files.write(tmp_path / "a.gguf", "gemma2", hf, fields=say)), device="cpu")
    torch.testing.assert_close(traced(model), log_probs(hf), atol=2e-5, rtol=0)
