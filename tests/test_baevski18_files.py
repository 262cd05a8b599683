"""Files: what is read, what is refused and how; the dictionary and its tokenizer; conversion; the command."""

import argparse
import collections
import functools
import json
import os
import pickle
import re
import sys
import types
import warnings
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import baevski18_reference as fairseq
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_subvalues as tlsv
from tl_subvalues.baevski18.checkpoint import read_checkpoint
from tl_subvalues.baevski18.dictionary import make_tokenizer, read_dictionary
from tl_subvalues.command import cli

pytestmark = [pytest.mark.bridge, pytest.mark.any_release]
DICTIONARY = fairseq.DATA / "dict.txt"


def load(*paths: Any, **kwargs: Any) -> Any:
    return tlsv.baevski18.load(*paths, device="cpu", **kwargs)


def refused(tmp_path: Path, checkpoint: dict[str, Any], message: str, error: type[Exception] = ValueError) -> None:
    """Loading is refused with this message, in one sentence."""
    with pytest.raises(error, match=message) as caught:
        load(*fairseq.write(tmp_path, checkpoint))
    assert "\n" not in str(caught.value)


# The pickle.


class Malicious:
    """Would leave a file behind if its pickle were run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize("place", ["beside", "in the namespace", "in the model"])
def test_a_pickle_that_would_run_a_program_is_refused_and_not_run(place, zip_file, tmp_path):
    """Wherever the payload is, in both formats; the file that it would make is not there."""
    mark = tmp_path / "ran"
    checkpoint = fairseq.make_checkpoint()
    payload = Malicious(mark)
    if place == "beside":
        checkpoint["extra_state"] = payload
    elif place == "in the namespace":
        checkpoint["args"].data = payload
    else:
        checkpoint["model"]["decoder.version"] = payload
    path = tmp_path / "model.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zip_file)
    with pytest.raises(tlsv.UnsupportedModelError, match=r"asks for (posix|os)\.system, .*not loaded"):
        load(path, fairseq.write_dictionary(tmp_path / "dict.txt"))
    assert not mark.exists()
    # The payload is no blank: read without a guard, it runs.
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_nothing_stays_allowed_after_a_load(tmp_path):
    """The allow-list holds for one load: torch's own is as it was."""
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(fairseq.fixture("args2019"))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(fairseq.fixture("args"), weights_only=True)


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
@pytest.mark.parametrize("zip_file", [True, False])
def test_a_truncated_file_is_refused(keep, zip_file, tmp_path):
    """Cut anywhere, in both formats: one sentence."""
    path = tmp_path / "model.pt"
    torch.save(fairseq.make_checkpoint(), path, _use_new_zipfile_serialization=zip_file)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.pt: truncated, or no PyTorch checkpoint"):
        read_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    """Text, an archive not unpacked, a checkpoint of something else, a file that is not there."""
    import tarfile

    text = tmp_path / "text.pt"
    text.write_text("the cat sat on the mat\n")
    with pytest.raises(ValueError, match="truncated, or no PyTorch checkpoint"):
        read_checkpoint(text)
    archive = tmp_path / "archive.tar.bz2"
    with tarfile.open(archive, "w:bz2") as tar:
        tar.add(text, "model.pt")
    with pytest.raises(ValueError, match="an archive; unpack it"):
        read_checkpoint(archive)
    torch.save({"state": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a fairseq checkpoint"):
        read_checkpoint(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "absent.pt")


def test_options_as_pickled_omegaconf_objects_are_refused(tmp_path, monkeypatch):
    """fairseq from October 2020 to March 2021: named, with the way out."""
    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = type("DictConfig", (dict,), {"__module__": "omegaconf.dictconfig"})
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    checkpoint = fairseq.make_checkpoint()
    checkpoint = {"args": None, "cfg": module.DictConfig(model=vars(checkpoint["args"])), "model": checkpoint["model"]}
    torch.save(checkpoint, tmp_path / "model.pt")
    monkeypatch.undo()
    with pytest.raises(tlsv.UnsupportedModelError, match=r"omegaconf.*save it again"):
        read_checkpoint(tmp_path / "model.pt")


# The options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_scale_embedding": True}, "no_scale_embedding is set"),
        ({"layernorm_embedding": True}, "layernorm_embedding is set"),
        ({"decoder_learned_pos": True}, "decoder_learned_pos is set"),
        ({"character_embeddings": True}, "character_embeddings is set"),
        ({"no_token_positional_embeddings": True}, "no_token_positional_embeddings is set"),
        ({"share_decoder_input_output_embed": True}, "share_decoder_input_output_embed is set"),
        ({"scale_heads": True}, "scale_heads is set"),
        ({"base_layers": 1}, "base_layers is set"),
        ({"adaptive_input": False}, "adaptive_input is not set"),
        ({"decoder_normalize_before": False}, "decoder_normalize_before is not set"),
        ({"tie_adaptive_weights": False}, "tie_adaptive_weights is not set"),
        ({"no_decoder_final_norm": False}, "there is a final norm"),
        ({"decoder_final_norm": True}, "there is a final norm"),
        ({"activation_fn": "gelu"}, "activation_fn is 'gelu'"),
        ({"decoder_output_dim": 16}, "decoder_output_dim is 16"),
        ({"adaptive_softmax_cutoff": "10,30"}, "adaptive_softmax_cutoff is other"),
        ({"adaptive_softmax_factor": 2}, "adaptive_softmax_factor is other"),
        ({"decoder_novelty": 3}, "decoder_novelty is 3, which is not known"),
        ({"output_dictionary_size": 50}, "output_dictionary_size is 50"),
        ({"arch": "transformer_wmt_en_de"}, "not of a transformer_lm"),
    ],
)
def test_options_of_another_architecture_are_refused(options, message, tmp_path):
    """Each by its name."""
    refused(tmp_path, fairseq.make_checkpoint(**options), message, tlsv.UnsupportedModelError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adaptive_input_cutoff": None}, "adaptive_input_cutoff is None"),
        ({"decoder_layers": "many"}, "decoder_layers is 'many'"),
        ({"max_target_positions": None}, "tokens_per_sample is None"),
        ({"decoder_attention_heads": 5}, "not divisible"),
    ],
)
def test_options_that_make_no_model_are_refused(options, message, tmp_path):
    """Sizes that are missing, or do not go together."""
    refused(tmp_path, fairseq.make_checkpoint(**options), message)


def test_options_that_change_nothing_are_ignored(tmp_path):
    """Dropout and the like, options of training unknown to the loader, unset options of later years."""
    checkpoint = fairseq.make_checkpoint(
        attention_dropout=0.5,
        quant_noise_pq=0.1,
        tpu=True,
        wandb_project="x",
        novelty_of_training=3,
        decoder_novelty=None,
    )
    load(*fairseq.write(tmp_path, checkpoint))


@pytest.mark.parametrize("style", ["namespace in cfg", "tokens_per_sample", "version 2"])
def test_other_ways_to_say_the_same(style, tmp_path):
    """cfg['model'] as a Namespace, the context by its other name, an old version that drops a final norm."""
    checkpoint = fairseq.make_checkpoint()
    plain = fairseq.Reference(checkpoint)
    if style == "namespace in cfg":
        checkpoint = {"args": None, "cfg": {"model": checkpoint["args"], "task": None}, "model": checkpoint["model"]}
    elif style == "tokens_per_sample":
        checkpoint["args"].tokens_per_sample, checkpoint["args"].max_target_positions = 24, None
    else:
        checkpoint["model"]["decoder.version"] = torch.tensor([2.0])
        del checkpoint["args"].no_decoder_final_norm
    model = load(*fairseq.write(tmp_path, checkpoint))
    assert model.cfg.n_ctx == 24
    tokens = [2, 5, 40]
    expected = plain.log_probs(plain.residuals(tokens)[0][-1])
    torch.testing.assert_close(model(torch.tensor([tokens]))[0].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.each_release
def test_a_model_trained_with_bos_starts_with_it(tmp_path):
    """add_bos_token: `<s>` in front, not `</s>`."""
    model = load(*fairseq.write(tmp_path, fairseq.make_checkpoint(add_bos_token=True)))
    assert model.to_tokens("w5 w6").tolist() == [[0, 5, 6]]


# The tensors.


def edit(checkpoint: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A tensor replaced, added, or (None) taken away; `__` stands for a dot."""
    for name, value in changes.items():
        key = "decoder." + name.replace("__", ".")
        if value is None:
            del checkpoint["model"][key]
        else:
            checkpoint["model"][key] = value
    return checkpoint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers__0__fc1__bias": None}, r"layers\.0\.fc1\.bias is missing"),
        ({"layers__2__fc1__bias": torch.zeros(20)}, r"layers\.2\.fc1\.bias is not known"),
        ({"embed_out": torch.zeros(61, 32)}, "embed_out is not known"),
        ({"layers__0__encoder_attn_layer_norm__weight": torch.ones(32)}, "encoder_attn_layer_norm.weight is not known"),
        ({"layers__0__fc1__bias": torch.zeros(21)}, r"layers\.0\.fc1\.bias has shape \(21,\), not \(20,\)"),
        ({"layers__0__fc1__bias": torch.zeros(20, dtype=torch.long)}, "fc1.bias holds torch.int64"),
        (
            {"adaptive_softmax__head__word_proj__weight": torch.zeros(12, 32)},
            "word_proj.weight differs from embed_tokens",
        ),
        ({"adaptive_softmax__tail__1__2__weight": torch.zeros(31, 2)}, "tail.1.2.weight differs"),
        ({"adaptive_softmax__tail__0__0__weight": torch.zeros(32, 8)}, "tail.0.0.weight differs"),
        ({"embed_tokens__embeddings__2__0__weight": None}, "words"),
        ({"layers__0__layer_norms__0__weight": torch.ones(32)}, "twice"),
    ],
)
def test_tensors_that_are_not_those_of_the_options_are_refused(changes, message, tmp_path):
    """Missing, left over, of another shape or kind, copies that differ: each by its name."""
    refused(tmp_path, edit(fairseq.make_checkpoint(), **changes), message)


@pytest.mark.parametrize("changes", [{"layer_norm__weight": torch.ones(32), "layer_norm__bias": torch.zeros(32)}])
def test_a_final_norm_is_refused(changes, tmp_path):
    """It is never dropped without a word."""
    refused(tmp_path, edit(fairseq.make_checkpoint(), **changes), "has a final norm", tlsv.UnsupportedModelError)


def test_an_encoder_is_refused(tmp_path):
    """A translation model is named as what it is not."""
    checkpoint = fairseq.make_checkpoint()
    checkpoint["model"]["encoder.version"] = torch.ones(1)
    refused(tmp_path, checkpoint, "encoder.version, which is outside a decoder", tlsv.UnsupportedModelError)


def test_missing_buffers_and_copies_are_no_matter(tmp_path):
    """The tied copies may be left out, and all buffers may hold anything or be absent."""
    checkpoint = fairseq.make_checkpoint()
    reference = fairseq.Reference(checkpoint)
    dropped = re.compile(r".*(_float_tensor|word_proj\.weight|tail\.\d\.[02]\.weight|softmax\.version)")
    checkpoint["model"] = {name: t for name, t in checkpoint["model"].items() if not dropped.fullmatch(name)}
    model = load(*fairseq.write(tmp_path, checkpoint))
    expected = reference.log_probs(reference.residuals([2, 9])[0][-1])
    torch.testing.assert_close(model(torch.tensor([[2, 9]]))[0].double(), expected, atol=1e-4, rtol=0)


def test_names_of_2018_are_read(tmp_path):
    """layer_norms.0 and .2, and q, k, v in one matrix."""
    checkpoint = fairseq.make_checkpoint()
    reference = fairseq.Reference(checkpoint)
    old = collections.OrderedDict()
    for name, tensor in checkpoint["model"].items():
        name = name.replace("self_attn_layer_norm", "layer_norms.0").replace(".final_layer_norm", ".layer_norms.2")
        old[name] = tensor
    for layer in range(2):
        own = f"decoder.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            old[f"{own}.in_proj_{kind}"] = torch.cat([old.pop(f"{own}.{p}_proj.{kind}") for p in "qkv"])
    model = load(*fairseq.write(tmp_path, {"args": checkpoint["args"], "model": old}))
    expected = reference.log_probs(reference.residuals([2, 9, 33])[0][-1])
    torch.testing.assert_close(model(torch.tensor([[2, 9, 33]]))[0].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.each_release
def test_half_precision_is_upcast(tmp_path):
    """A file saved in float16 is computed in float32, unless another dtype is asked for."""
    checkpoint = fairseq.make_checkpoint()
    half = {name: t.half() if t.is_floating_point() else t for name, t in checkpoint["model"].items()}
    reference = fairseq.Reference({"args": checkpoint["args"], "model": half})
    paths = fairseq.write(tmp_path, {"args": checkpoint["args"], "model": half})
    model = load(*paths)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = reference.log_probs(reference.residuals([2, 9])[0][-1])
    torch.testing.assert_close(model(torch.tensor([[2, 9]]))[0].double(), expected, atol=1e-4, rtol=0)
    assert {p.dtype for p in load(*paths, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


# The dictionary and its tokenizer.


def test_the_dictionary_is_read_as_fairseq_reads_it():
    """Special words first, then one a line; every line that fairseq encoded comes out the same."""
    words = read_dictionary(DICTIONARY)
    assert words[:6] == ["<s>", "<pad>", "</s>", "<unk>", "the", ","]
    assert len(words) == 120
    tokenizer = make_tokenizer(words)
    for known in fairseq.described()["encode_line"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tlsv.UnknownWordsWarning)
            assert tokenizer(known["text"])["input_ids"] == [2, *known["ids"][:-1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 3\nthe 2\n", "line 2 holds 'the' a second time"),
        ("the 3\nof\n", "line 2 is 'of', not a word and its count"),
        ("the many\n", "line 1"),
        ("<unk> 3\n", "'<unk>' a second time"),
        ("the 3\n\nof 2\n", "line 2 is ''"),
    ],
)
def test_a_bad_dictionary_is_refused(text, message, tmp_path):
    """By line."""
    (tmp_path / "dict.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_dictionary(tmp_path / "dict.txt")


def test_other_forms_of_a_dictionary(tmp_path):
    """A word with a space in it, an overwritten special word, no newline at the end; not UTF-8, and not there."""
    path = tmp_path / "dict.txt"
    path.write_text("New York 3\n<unk> 2 #fairseq:overwrite\nthe 1", encoding="utf-8")
    words = read_dictionary(path)
    assert words[4:] == ["New York", "<unk>", "the"]
    tokenizer = make_tokenizer(words)
    assert tokenizer("<unk> the")["input_ids"] == [2, 5, 6]  # the later entry has the name,
    with pytest.warns(tlsv.UnknownWordsWarning):
        assert tokenizer("unseen")["input_ids"] == [2, 3]  # and unknown words stay the earlier one
    path.write_bytes("café 3\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_dictionary(path)
    with pytest.raises(FileNotFoundError, match="no such dictionary"):
        read_dictionary(tmp_path / "absent.txt")


def test_a_dictionary_of_another_size_is_refused(tmp_path):
    """Weights and dictionary of different releases must not be mixed."""
    paths = fairseq.write(tmp_path, fairseq.make_checkpoint(), vocab=60)
    with pytest.raises(ValueError, match=r"60 words .* where the checkpoint has 61"):
        load(*paths)


PIECES = ["the", "café", "w030", "unseen", "Unseen", "@-@", "THE", "madeupword0000", "the,", "<unk>", "</s>", "<pad>"]
SPACES = [" ", "  ", "\t", "\u00a0", "\x1c", "\u3000", "\u2028", "\r"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(SPACES))))
def test_words_are_what_stands_between_white_space(pairs):
    """As Python splits, which is fairseq's way; special words written out are themselves."""
    words = read_dictionary(DICTIONARY)
    text = "".join(word + space for word, space in pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tlsv.UnknownWordsWarning)
        found = _tokenizer()(text)["input_ids"]
    assert found == [2, *(words.index(word) if word in words else 3 for word in text.split())]


@functools.cache
def _tokenizer() -> Any:
    return make_tokenizer(read_dictionary(DICTIONARY))


@pytest.mark.each_release
def test_unknown_words_are_warned_of_by_name_once(tmp_path):
    """In a prompt of trace as in to_tokens: one warning, which names each word once; a known prompt has none."""
    model = load(*fairseq.write(tmp_path, fairseq.make_checkpoint()))
    for encode in (model.to_tokens, lambda text: tlsv.trace(model, text, "w9")):
        with pytest.warns(tlsv.UnknownWordsWarning, match="read as '<unk>': 'cat', 'Mat'.$") as caught:
            encode("w5 cat w6 Mat cat <unk>")
        assert len([w for w in caught if w.category is tlsv.UnknownWordsWarning]) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encode("w5 w6 <unk>")


def test_an_unknown_target_is_refused(tmp_path):
    """It would be read as <unk>, which can be traced by that name."""
    model = load(*fairseq.write(tmp_path, fairseq.make_checkpoint()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="' Paris' is not in the vocabulary"):
            tlsv.trace(model, "w5", " Paris")
        assert tlsv.trace(model, "w5", "<unk>").target_id == 3
        assert tlsv.trace(model, "w5", " w7").target_id == 7


@pytest.mark.each_release
def test_text_goes_in_and_comes_out(tmp_path):
    """BOS by default and not when refused; newlines as </s>; to_string, to_str_tokens, batches padded with <pad>."""
    model = load(*fairseq.write(tmp_path, fairseq.make_checkpoint()))
    assert model.to_tokens("w5\nw6").tolist() == [[2, 5, 2, 6]]
    assert model.to_tokens("w5 w6", prepend_bos=False).tolist() == [[5, 6]]
    assert model.to_string(torch.tensor([2, 5, 6])) == "</s> w5 w6"
    assert model.to_str_tokens("w5 w6") == ["</s>", "w5", "w6"]
    assert model.to_single_token("w7") == 7
    assert model.to_tokens(["w5 w6 w7", "w8"]).tolist() == [[2, 5, 6, 7], [2, 8, 1, 1]]
    assert (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id, model.tokenizer.pad_token_id) == (2, 2, 1)


# Conversion, loading by name, the command, the entry point.


@pytest.mark.each_release
def test_converted_it_is_the_same_and_holds_no_pickle(tmp_path):
    """Same bits in every log-probability; safetensors, JSON and the dictionary, and nothing else."""
    out = tmp_path / "out"
    tlsv.baevski18.convert(fairseq.fixture(), DICTIONARY, out)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "dict.txt", "model.safetensors"]
    assert json.loads((out / "config.json").read_text())["cutoffs"] == [40, 80]
    tokens = torch.tensor([[2, 5, 50, 100]])
    expected = load(fairseq.fixture(), DICTIONARY)(tokens)
    for model in (load(out), load(out, DICTIONARY), tlsv.load_model(f"baevski18:{out}", device="cpu")):
        assert torch.equal(model(tokens), expected)
    with pytest.raises(FileExistsError, match="is there already"):
        tlsv.baevski18.convert(fairseq.fixture(), DICTIONARY, out)


def test_the_unpacked_archive_is_a_folder_too(tmp_path):
    """model.pt and dict.txt in one folder need no more than its name."""
    fairseq.write(tmp_path, fairseq.make_checkpoint())
    assert load(tmp_path).cfg.d_vocab == 61
    with pytest.raises(ValueError, match="needs its dictionary"):
        load(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        tlsv.load_model("baevski18:nowhere")


@pytest.mark.parametrize("shape", ["untied", "one band"])
def test_other_shapes_convert_too(shape, tmp_path):
    """Projections of their own are kept, and a model without bands has no classes."""
    paths = fairseq.write(tmp_path, fairseq.make_checkpoint(**fairseq.SHAPES[shape]))
    tlsv.baevski18.convert(*paths, tmp_path / "out")
    tokens = torch.tensor([[2, 5, 50]])
    assert torch.equal(load(tmp_path / "out")(tokens), load(*paths)(tokens))


def test_a_damaged_folder_is_refused(tmp_path):
    """Weights cut off or of another configuration, JSON that is none: one sentence each."""
    tlsv.baevski18.convert(fairseq.fixture(), DICTIONARY, tmp_path / "out")
    weights, settings_file = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "config.json"
    whole, text = weights.read_bytes(), settings_file.read_text()
    for damage, message in ((lambda: weights.write_bytes(whole[:1000]), "truncated"), (weights.unlink, "missing")):
        damage()
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "out")
    weights.write_bytes(whole)
    for content, message in (
        ("{", "not JSON"),
        ("[]", "not a folder that"),
        (text.replace('"n_layers": 3', '"n_layers": 2'), "does not go with"),
        (text.replace('"d_mlp"', '"mlp"'), "no such field: mlp"),
    ):
        settings_file.write_text(content)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "out")


def command(*arguments: str) -> int:
    try:
        with warnings.catch_warnings():
            cli.main(list(arguments))
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.mark.each_release
@pytest.mark.slow
def test_the_command_converts_and_traces(tmp_path, capsys):
    """convert CHECKPOINT DICT OUT, then trace --model baevski18:OUT; an unknown word is named on standard error."""
    out = tmp_path / "out"
    assert command("convert", str(fairseq.fixture()), str(DICTIONARY), str(out)) == 0
    assert (
        command("trace", "The film was unseenword", "--target", "w100", "--model", f"baevski18:{out}", "--top", "3")
        == 2
    )
    assert "'w100' is not in the vocabulary" in capsys.readouterr().err
    assert (
        command("trace", "The film was unseenword", "--target", "w080", "--model", f"baevski18:{out}", "--top", "3")
        == 0
    )
    shown = capsys.readouterr()
    assert "'</s> The film was <unk>' -> 'w080'" in shown.out
    assert shown.err.strip() == "tl-subvalues: not in the model's vocabulary, and read as '<unk>': 'unseenword'."


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    """A folder that is there, a file that is none, a malicious file: status 2 and one line."""
    (tmp_path / "bad.pt").write_text("no checkpoint")
    torch.save({"model": Malicious(tmp_path / "ran")}, tmp_path / "malicious.pt")
    for checkpoint, out in (
        (fairseq.fixture(), tmp_path),
        (tmp_path / "bad.pt", "o"),
        (tmp_path / "malicious.pt", "o"),
    ):
        assert command("convert", str(checkpoint), str(DICTIONARY), str(tmp_path / out)) == 2
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "o").exists()


@pytest.mark.each_release
def test_the_entry_point_names_the_adapter(monkeypatch):
    """What pyproject.toml declares is what TransformerLens discovers, and it knows the architecture."""
    from transformer_lens.factories import architecture_adapter_factory as factory

    from tl_subvalues.baevski18.bridge import Baevski18ArchitectureAdapter, register

    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    group = project.split('[project.entry-points."transformer_lens.architectures"]')[1].split("[")[0]
    name, value = re.search(r'(\w+) = "([^"]+)"', group).groups()
    point = EntryPoint(name, value, "transformer_lens.architectures")
    known = factory.ArchitectureAdapterFactory
    monkeypatch.setattr(factory, "entry_points", lambda group: EntryPoints([point]))
    monkeypatch.setattr(known, "_adapters", {k: v for k, v in known._adapters.items() if k != name})
    monkeypatch.setattr(known, "_entry_points_discovered", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a name that is taken would be warned of
        register()
        register()
    assert known._adapters[name] is Baevski18ArchitectureAdapter


def test_a_namespace_is_a_table_of_options():
    """The stand-ins for fairseq's meters are empty, and the options come out as they went in."""
    loaded = read_checkpoint(fairseq.fixture("args2019"))
    assert isinstance(loaded["args"], argparse.Namespace)
    assert loaded["args"].no_tie_adaptive_proj is False
