"""Loading by name: local folders, names that cannot be had. The embedded model has tests of its own."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.command import cli
from tl_subvalues.loading import models


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


def test_a_device_or_a_dtype_that_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and no file blamed; a name where a model is needed says how to load it."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"device is what torch.device takes .*, got 'gpu'"):
        tlsv.load_model(str(tmp_path), device="gpu")
    with pytest.raises(ValueError, match=r"dtype is one of torch's, as torch.float32, got 'half'"):
        tlsv.load_model(str(tmp_path), dtype="half")  # type: ignore[arg-type]
    with pytest.raises(tlsv.UnsupportedModelError, match=r"load it first: tlsv.load_model\('gpt2'\)"):
        tlsv.trace("gpt2", "One", " two")


LLAMAS = ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"]


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "gpt2-medium", *LLAMAS])
def test_a_name_that_cannot_be_had(name: str) -> None:
    """One sentence that names it, where the hub cannot be reached; TransformerLens 2 has a list of names."""
    with pytest.raises((OSError, tlsv.UnsupportedModelError)) as caught:
        tlsv.load_model(name)
    assert repr(name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["./x", "/no/such", "~/no-such", "a/b/c", "a/", "../no-such", "a\\b"])
def test_a_folder_that_is_not_there(name: str) -> None:
    """What can be no name of the hub is not asked of it."""
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        tlsv.load_model(name)


def test_what_names_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, no text, and a folder of something else."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for name, message in (
        ("", "name is empty"),
        (3, "named by text or a path, got int"),
        (b"gpt2", "named by text or a path, got bytes"),
        ("~no-such-user/model", "no such user"),
        ("x" * 300, "too long"),
        (tmp_path, "has no config.json"),
        (str(tmp_path), "has no config.json"),
    ):
        with pytest.raises(ValueError, match=message):
            tlsv.load_model(name)


def test_a_folder_beside_that_is_called_like_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked for as ever, whatever stands in a folder of that name; a path is the folder."""
    (tmp_path / "gpt2-small").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("tl_subvalues.loading.models.load_named", lambda name, **_: asked.append(name) or 1 / 0)
    with pytest.raises(ValueError, match="division"):
        tlsv.load_model("gpt2-small")
    assert asked == ["gpt2-small"]
    with pytest.raises(ValueError, match=r"has no config\.json"):
        tlsv.load_model(Path("gpt2-small"))


@pytest.mark.slow
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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", cut),
        ("model.safetensors", lambda path: path.write_bytes(b"")),
        ("model.safetensors", lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}")),
        ("config.json", lambda path: path.write_text('{"a":' * 20_000)),
        ("config.json", lambda path: path.write_text('{"model_type": "llama", "num_attention_heads": 0}')),
        ("config.json", lambda path: path.write_text('{"model_type": ["\x1b[31m"]}')),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    file: str, damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the libraries below raise, in Python and on the command line."""
    zoo.hf_model("llama").save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    damage(tmp_path / file)
    with pytest.raises((ValueError, OSError)):
        tlsv.load_model(str(tmp_path), device="cpu")
    with pytest.raises(SystemExit) as left:
        cli.main(["trace", "w3", "--target", "w4", "--model", str(tmp_path)])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.strip().isprintable()
    assert len(said) < 1100
