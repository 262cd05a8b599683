"""Files that somebody made to do harm, or that came damaged: each is refused in one sentence, for what it is.

Nothing of them runs, and nothing is made of a size that only the file claims.
"""

import argparse
import collections
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import baevski18_reference as fairseq
from helpers import zoo
from safetensors.torch import load_file, save_file

import tl_subvalues as tlsv
from tl_subvalues.baevski18 import loading
from tl_subvalues.baevski18.checkpoint import read_checkpoint
from tl_subvalues.baevski18.dictionary import read_dictionary
from tl_subvalues.command import cli
from tl_subvalues.errors import shown, shown_value

pytestmark = pytest.mark.any_release

ROOM = 2**30  # bytes that a test may take beside what the process has


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A limit on memory, where the system has one: what would exhaust it fails here."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(pages.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(*paths: Any, match: str, error: type[Exception] = ValueError) -> None:
    """Loading is refused for this reason, in one sentence that can be shown."""
    with pytest.raises(error, match=match) as caught:
        loading.read(*paths)
    one_sentence(str(caught.value))


def one_sentence(message: str) -> None:
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 1200
    assert message.endswith(".")


# Pickles. Hand-made: protocol 2, as torch.save writes.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def archive(path: Path, content: bytes, method: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    """A file as torch.save writes it, around a pickle of one's own."""
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("archive/data.pkl", content)
        packed.writestr("archive/byteorder", "little")
        for key, data in records.items():
            packed.writestr(f"archive/data/{key.removeprefix('r')}", data)
    return path


def stream(path: Path, content: bytes) -> Path:
    """The same in the older format."""
    head = (pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(b"".join(head) + content + pickle.dumps([], 2))
    return path


def beside_the_model(payload: bytes) -> bytes:
    return b"\x80\x02}(" + text("model") + b"}" + text("extra_state") + payload + b"u."


CALLS = {
    "eval": (named("builtins", "eval") + text("1") + b"\x85R", r"asks for builtins\.eval,.*not loaded"),
    "eval of Python 2": (named("__builtin__", "eval") + text("1") + b"\x85R", r"asks for __builtin__\.eval"),
    "getattr": (named("builtins", "getattr") + text("a") + text("b") + b"\x86R", r"asks for builtins\.getattr"),
    "STACK_GLOBAL": (text("os") + text("system") + b"\x93" + text("ls") + b"\x85R", r"asks for os\.system"),
    "INST": (b"(" + text("ls") + b"ios\nsystem\n", r"asks for os\.system"),
    "OBJ": (b"(" + named("os", "system") + text("ls") + b"o", r"asks for os\.system"),
    "NEWOBJ": (named("subprocess", "Popen") + text("ls") + b"\x85\x81", r"asks for subprocess\.Popen"),
    "a name of torch": (named("torch.hub", "load") + text("a") + b"\x85R", r"asks for torch\.hub\.load"),
    "a nested name": (text("torch") + text("_utils.os.system") + b"\x93", r"asks for torch\._utils\.os\.system"),
    "bytearray of 2 GB": (named("builtins", "bytearray") + b"J\xff\xff\xff\x7f\x85R", r"asks for builtins\.bytearray"),
    "its own opcode for it": (b"\x96" + struct.pack("<Q", 2**31) + b"ab", "truncated|BYTEARRAY8"),
    "an extension": (b"\x82\x01", "uses EXT1"),
    "escape sequences": (text("os\x1b[2J\x07") + text("x\u202e") + b"\x93)R", r"asks for os\\x1b\[2J\\x07\.x\\u202e"),
    "a name of 10,000 letters": (named("a" * 10_000, "b") + b")R", r"asks for a+ … a+\.b"),
    "a call of what is no name": (text("os.system") + b")R", "calls what is no name"),
    "nested keys": (b"})" + b"\x85" * 100_000 + b"Ns", r"a table with the key \(\(\(\.\.\.\),\),\)"),
    "keys that collide": (
        b"}(" + b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(1, 99)) + b"u",
        "a table with the key",
    ),
    "an endless list of steps": (b"N0" * 260_000 + b"N", "more than 500,000 steps"),
    "a string of 4 GB": (b"X\xff\xff\xff\xffab", "truncated"),
    "a number of 100,000 digits": (b"L" + b"9" * 100_000 + b"L\n", "truncated|uses LONG"),
}


@pytest.mark.parametrize("write", [archive, stream])
@pytest.mark.parametrize("what", CALLS)
def test_a_pickle_is_called_what_it_is(what: str, write: Any, tmp_path: Path) -> None:
    """Names are refused by name and never looked up, whatever opcode asks; sizes are not believed."""
    payload, match = CALLS[what]
    refused(write(tmp_path / "model.pt", beside_the_model(payload)), fairseq.DATA / "dict.txt", match=match)


def tensor(key: str, numel: int, size: tuple[int, ...], stride: tuple[int, ...], kind: str = "FloatStorage") -> bytes:
    """A tensor's pickle, saying anything of its size."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x09" + value.to_bytes(9, "little") for value in values) + b"t"

    storage = b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + numbers((numel,))[1:-1] + b"tQ"
    rest = numbers((0,))[1:-1] + numbers(size) + numbers(stride) + b"\x89" + named("collections", "OrderedDict") + b")R"
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + rest + b"tR"


EMBEDDING = "decoder.embed_tokens.embeddings.0.0.weight"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (tensor("0", 4, (10**12, 4), (0, 1)), r"a tensor of shape \(1000000000000, 4\) where there are 4 numbers"),
        (tensor("0", 4, (2, 4), (4, 1)), "where there are 4 numbers"),
        (tensor("0", 10**12, (2, 2), (2, 1)), "truncated"),
        (tensor("1", 4, (2, 2), (2, 1)), "truncated"),
        (tensor("0", 4, (1,) * 300, (1,) * 300), "a tensor of another kind"),
        (tensor("../../../etc/hostname", 4, (4,), (1,)), "truncated"),
        (tensor("0", 2, (2,), (1,), "ComplexDoubleStorage"), "asks for torch.ComplexDoubleStorage"),
        (text("no tensor"), r"its 'decoder\.embed.*weight' is a str, not a tensor"),
        (b"}", "is a dict, not a tensor"),
    ],
)
def test_a_tensor_is_as_large_as_its_numbers(content: bytes, match: str, tmp_path: Path) -> None:
    """Strides of zero, places beyond the end, storages larger than the file: seen before memory is taken."""
    pickled = b"\x80\x02}" + text("model") + b"}" + text(EMBEDDING) + content + b"ss."
    path = archive(tmp_path / "model.pt", pickled, r0=bytes(16))
    refused(path, fairseq.DATA / "dict.txt", match=match)


def test_layers_that_share_their_numbers_are_refused(tmp_path: Path) -> None:
    """A small file can say that ten thousand large tensors lie at one place."""
    checkpoint = fairseq.make_checkpoint(layers=1)
    own = {name: value for name, value in checkpoint["model"].items() if ".layers.0." in name}
    for layer in range(1, 200):
        checkpoint["model"] |= {name.replace("layers.0", f"layers.{layer}"): value for name, value in own.items()}
    checkpoint["args"].decoder_layers = 200
    refused(*fairseq.write(tmp_path, checkpoint), match=r"its tensors have [\d,]+ numbers together, where")


@pytest.mark.slow
def test_packed_records_are_not_unpacked(tmp_path: Path) -> None:
    """Zeros deflate a thousandfold; torch.save stores what it writes."""
    path = archive(tmp_path / "model.pt", b"\x80\x02}.", zipfile.ZIP_DEFLATED, r0=bytes(2**28))
    assert path.stat().st_size < 2**20
    refused(path, fairseq.DATA / "dict.txt", match="records are compressed or overlap")


def test_an_archive_of_archives_is_not_opened(tmp_path: Path) -> None:
    """What a compressed archive would unpack to is not looked at."""
    for head in (b"BZh9", b"\x1f\x8b\x08", b"\xfd7zXZ\x00"):
        (tmp_path / "model.pt").write_bytes(head + bytes(1000))
        refused(tmp_path / "model.pt", fairseq.DATA / "dict.txt", match="an archive; unpack it")


@pytest.mark.parametrize("zip_file", [True, False])
@pytest.mark.parametrize("style", [*fairseq.STYLES, "drawn", "half", "one band"])
def test_what_is_read_is_what_torch_reads(style: str, zip_file: bool, tmp_path: Path) -> None:
    """Every tensor's bits, dtype and shape, and all options, are those that torch.load gives, in both formats."""
    if style in fairseq.STYLES:
        meters = {f"fairseq.meters.{name}": type(name, (), {}) for name in ("AverageMeter", "TimeMeter")}
        allowed = [argparse.Namespace, *((cls, name) for name, cls in meters.items())]
        with torch.serialization.safe_globals(allowed):
            checkpoint = torch.load(fairseq.fixture(style), weights_only=True)
        path = fairseq.fixture(style)
    else:
        checkpoint = fairseq.make_checkpoint(**fairseq.SHAPES["one band"] if style == "one band" else {})
        if style == "half":
            checkpoint["model"] = {name: value.half() for name, value in checkpoint["model"].items()}
        checkpoint["model"]["decoder.layers.0.fc1.weight"] = checkpoint["model"]["decoder.layers.0.fc1.weight"].T
        checkpoint["model"] = collections.OrderedDict(checkpoint["model"])
        path = tmp_path / "model.pt"
        torch.save(checkpoint, path, _use_new_zipfile_serialization=zip_file)
    found = read_checkpoint(path)
    assert found["model"].keys() == checkpoint["model"].keys()
    for name, value in checkpoint["model"].items():
        assert found["model"][name].dtype == value.dtype
        assert torch.equal(found["model"][name].isnan(), value.isnan())
        assert torch.equal(found["model"][name].nan_to_num(), value.nan_to_num())
    assert found.get("args") == checkpoint.get("args")
    assert found.get("cfg") == checkpoint.get("cfg")


# Options that would make something huge.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"decoder_layers": 10**9}, "1000000000 layers are asked for, where the file holds tensors of 2"),
        ({"decoder_layers": 10**300}, "n_layers is 1000.*no size of a model"),
        ({"max_target_positions": 40_000_000}, "context of 40000000 positions takes more numbers than the model"),
        ({"decoder_ffn_embed_dim": 10**9}, r"fc1\.weight has shape \(20, 32\), not \(1000000000, 32\)"),
        ({"decoder_embed_dim": 10**9}, "decoder_input_dim is 32, other than decoder_embed_dim 1000000000"),
        ({"adaptive_input_factor": 0.5}, "factor is 1 or more, got 0.5"),
        ({"adaptive_input_factor": 1e300}, "without a width"),
        ({"adaptive_input_factor": float("nan")}, "factor is other than"),
        ({"adaptive_input_factor": "four"}, "adaptive_input_factor is 'four', not a number"),
        ({"adaptive_input_cutoff": ",".join(map(str, range(1, 100)))}, "adaptive_softmax_cutoff is other"),
        ({"adaptive_input_cutoff": [float("inf")]}, r"adaptive_input_cutoff is \[inf\], not numbers"),
        ({"adaptive_input_cutoff": torch.ones(2)}, "adaptive_input_cutoff is .*, not numbers"),
        ({"decoder_attention_heads": 0}, "n_heads is a positive whole number, got 0"),
        ({"output_dictionary_size": "many"}, "output_dictionary_size is 'many'"),
        ({"activation_fn": "\x1b[31m" + "x" * 5000}, r"activation_fn is '\\x1b\[31mx+\.\.\.x+'"),
        ({"decoder_\x1b[2J": 1}, r"decoder_\\x1b\[2J is 1, which is not known"),
        ({f"decoder_{i}": i for i in range(1, 5000)}, "and 4994 more of the kind"),
        ({"arch": "\x1b[2J"}, r"of a '\\x1b\[2J'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    """Sizes are held against the tensors before anything is made of them."""
    if "adaptive_input_factor" in options and isinstance(options["adaptive_input_factor"], float):
        options["adaptive_softmax_factor"] = options["adaptive_input_factor"]
    checkpoint = fairseq.make_checkpoint()
    vars(checkpoint["args"]).update(options)
    refused(*fairseq.write(tmp_path, checkpoint), match=match)


def test_a_repeated_list_is_not_written_out(tmp_path: Path) -> None:
    """A list of the same list of the same list, thirty levels of ten, has 10**30 entries, and one in a message."""
    nested: Any = ["deep"]
    for _ in range(30):
        nested = [nested] * 10
    refused(*fairseq.write(tmp_path, fairseq.make_checkpoint(decoder_novelty=nested)), match="decoder_novelty is ")


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"layers.0.fc1.weight": torch.full((20, 32), torch.nan)}, r"fc1\.weight holds numbers that are not finite"),
        ({"layers.0.fc1.bias": torch.full((20,), -torch.inf)}, r"fc1\.bias holds numbers that are not finite"),
        ({"layers.0.fc1.weight": torch.ones(20, 32, dtype=torch.int8)}, "holds torch.int8, not floating-point"),
        ({"version": torch.zeros(0)}, r"decoder\.version has shape \(0,\)"),
        ({"version": torch.zeros(7)}, r"decoder\.version has shape \(7,\)"),
        ({"embed_tokens.embeddings.0.0.weight": torch.tensor(1.0)}, "49 words|words"),
        ({"layers.0.self_attn.in_proj_weight": torch.tensor(1.0)}, r"in_proj_weight has shape \(\)"),
        ({"\x1b[2J" * 100: torch.ones(1)}, r"\\x1b\[2J.* … .* is not known"),
        ({f"x{i}": torch.ones(1) for i in range(5000)}, "and 4995 more of the kind"),
    ],
)
def test_tensors_that_cannot_be(tensors: dict[str, Any], match: str, tmp_path: Path) -> None:
    """No number anywhere, whole numbers, shapes that no such tensor has."""
    checkpoint = fairseq.make_checkpoint()
    checkpoint["model"] |= {f"decoder.{name}": value for name, value in tensors.items()}
    refused(*fairseq.write(tmp_path, checkpoint), match=match)


def test_numbers_beyond_a_dtype_are_refused(tmp_path: Path) -> None:
    """What is finite in the file may be infinite in the dtype that is asked for."""
    checkpoint = fairseq.make_checkpoint()
    checkpoint["model"]["decoder.layers.0.fc1.weight"][3, 4] = 1e6
    paths = fairseq.write(tmp_path, checkpoint)
    loading.read(*paths)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        loading.read(*paths, torch.float16)


@pytest.mark.each_release
@pytest.mark.skipif(not zoo.has_bridge(), reason="Baevski & Auli's model needs TransformerLens 3.9")
def test_masks_of_a_long_context_are_refused(tmp_path: Path) -> None:
    """HookedTransformer keeps one of n_ctx² in every layer; the way out is the bridge, which has none."""
    paths = fairseq.write(tmp_path, fairseq.make_checkpoint(length=100_000))
    with pytest.raises(tlsv.UnsupportedModelError, match=r"mask of 100000 × 100000 in each of 2 layers.*hooked=False"):
        tlsv.baevski18.load(*paths, device="cpu", hooked=True)
    assert tlsv.baevski18.load(*paths, device="cpu").cfg.n_ctx == 100_000


# A folder that `convert` wrote.


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    tlsv.baevski18.convert(*fairseq.write(tmp_path, fairseq.make_checkpoint()), tmp_path / "out")
    return tmp_path / "out"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """Whatever safetensors makes of it."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    paths = fairseq.write(tmp_path, fairseq.make_checkpoint())
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors: could not be written .*; remove .*out\.$") as caught:
            tlsv.baevski18.convert(*paths, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"n_layers": 10**9}, "1000000000 layers are asked for, where the file holds tensors of 2"),
        ({"n_ctx": 10**9}, "context of 1000000000 positions takes more numbers than the model"),
        ({"d_mlp": 10**12}, "does not go with"),
        ({"d_mlp": 10**400}, "n?.*d_mlp is 1000.*no size of a model"),
        ({"factor": 1e300}, "without a width"),
        ({"factor": float("inf")}, "without a width"),
        ({"factor": [4]}, r"factor is a number, got .* and \[4\]"),
        ({"cutoffs": [float("inf")]}, "cutoffs are whole numbers"),
        ({"cutoffs": None}, "cutoffs are whole numbers"),
        ({"cutoffs": []}, "are to rise from above 0"),
        ({"cutoffs": list(range(1, 62))}, "without a width|does not go with"),
        ({"tied_projections": "no"}, "tied_projections is true or false"),
        ({"bos_token": "\x1b[2J"}, r"bos_token is '</s>' or '<s>', got '\\x1b\[2J'"),
        ({"n_heads": 0}, "n_heads is a positive whole number"),
        ({"\x1b[2J": 0}, r"no such field: \\x1b\[2J"),
    ],
)
def test_a_configuration_that_cannot_be(fields: dict[str, Any], match: str, converted: Path) -> None:
    """Sizes are held against the weights' description before anything is made."""
    path = converted / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    refused(converted, None, match=match)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, " " * 2**20 + "{}", '{"n_ctx": 1' + "0" * 5000 + "}"]
)
def test_a_configuration_that_is_none(content: str, converted: Path) -> None:
    """Deeply nested, endless, or with a number of 5,000 digits."""
    (converted / "config.json").write_text(content)
    refused(converted, None, match=r"config\.json: not JSON")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda weight: weight.to(torch.int32), "holds I32, not floating-point numbers"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "holds F8_E4M3, not floating-point numbers"),
        (lambda weight: weight * torch.nan, "fc1.weight holds numbers that are not finite"),
        (lambda weight: weight.T.contiguous(), "does not go with"),
    ],
)
def test_converted_weights_that_cannot_be(change: Any, match: str, converted: Path) -> None:
    """Of another kind, without a number, of another shape."""
    state = load_file(converted / "model.safetensors")
    state["layers.0.mlp.fc1.weight"] = change(state["layers.0.mlp.fc1.weight"])
    save_file(state, converted / "model.safetensors")
    refused(converted, None, match=match)


def test_a_header_that_lies(converted: Path) -> None:
    """A header of 2**62 bytes, tensors beyond the end of the file."""
    weights = converted / "model.safetensors"
    whole = weights.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["layers.0.mlp.fc1.weight"] = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    told = json.dumps(header).encode()
    for content in ((2**62).to_bytes(8, "little") + whole[8:], len(told).to_bytes(8, "little") + told, b"", bytes(8)):
        weights.write_bytes(content)
        refused(converted, None, match="missing or truncated")


# The dictionary.


def test_many_words_overwritten(tmp_path: Path) -> None:
    """A dictionary is read in the time of its length: each of these lines took as long as all before it."""
    lines = "".join(f"w{i} 1\n" for i in range(50_000))
    lines += "".join(f"w{i} 1 #fairseq:overwrite\n" for i in range(50_000))
    (tmp_path / "dict.txt").write_text(lines, encoding="utf-8")
    words = read_dictionary(tmp_path / "dict.txt")
    assert len(words) == len(set(words)) == 100_004
    assert words[-1] == "w49999"
    assert words[50_003] == "w49999#fairseq:overwrite100000"


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("\x1b[2J", r"line 2 is '\\x1b\[2J', not a word and its count"),
        ("x" * 10_000, r"line 2 is 'x+\.\.\.x+', not a word"),
        ("the\x07 1\nthe\x07 1", r"line 3 holds 'the\\x07' a second time"),
        ("the 1 #fairseq:overwrite\nthe#fairseq:overwrite4 1\nthe 1 #fairseq:overwrite", "line 4 holds 'the'"),
    ],
)
def test_a_line_is_shown_escaped_and_short(line: str, match: str, tmp_path: Path) -> None:
    """Whatever a line holds, it does nothing to a terminal."""
    (tmp_path / "dict.txt").write_text(f"of 1\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=match) as caught:
        read_dictionary(tmp_path / "dict.txt")
    one_sentence(str(caught.value))


# What messages show.


def test_names_of_files_are_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file may be called anything; in Python and on the command line its name does nothing to a terminal."""
    folder = tmp_path / "\x1b[31m\x07red\n"
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"no checkpoint")
    refused(folder / "model.pt", fairseq.DATA / "dict.txt", match=r"\\x1b\[31m\\x07red\\n/model\.pt: truncated")
    (folder / "facts.csv").write_text("prompt\n")
    for arguments in (
        ["convert", str(folder / "model.pt"), str(fairseq.DATA / "dict.txt"), str(tmp_path / "o")],
        ["trace", "x", "--target", "y", "--model", f"baevski18:{folder}"],
        ["trace", "x", "--target", "y", "--model", str(folder)],
        ["trace", "x", "--target", "y", "--model", "\x1b[31m" * 5000],
        ["trace", "x", "--\x1b[31m"],
        ["evaluate", str(folder / "facts.csv")],
        ["evaluate", str(folder / "nowhere.csv")],
        ["collect", str(fairseq.DATA / "dict.txt"), "--out", str(folder / "x.txt")],
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert said.endswith("\n")
        assert said[:-1].isprintable()
        assert len(said) < 6000


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("plain é — text", "plain é — text"),
        ("a\x1b[2Jb\n\t\u202e\udc80", r"a\x1b[2Jb\n\t\u202e\udc80"),
        ("x" * 300, "x" * 100 + " … " + "x" * 100),
    ],
)
def test_shown(given: str, seen: str) -> None:
    """What can be seen stays; the rest is escaped; the middle of a long text is left out."""
    assert shown(given) == seen


def test_shown_values() -> None:
    """A value's repr, short whatever it holds."""
    assert shown_value("a\x1b") == r"'a\x1b'"
    assert len(shown_value("x" * 10**6)) < 80
    assert len(shown_value([[["x" * 100] * 100] * 100] * 100)) <= 210


# Mutations.


def mutated(content: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled or overwritten, mostly where a file says what it is."""
    data = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 5])):
        place = generator.randrange(min(len(data), generator.choice([len(data), 3000, 25_000])) or 1)
        what = generator.randrange(5)
        if what == 0:
            data[place] ^= 1 << generator.randrange(8)
        elif what == 1:
            data[place] = generator.choice([0, 255, *b"cR.(oib}jrq", 0x93, 0x8E, 0x96, 0x8B])
        elif what == 2:
            del data[place : place + generator.choice([1, 8, 1000])]
        elif what == 3:
            data[place:place] = data[max(0, place - generator.choice([1, 8, 500])) : place]
        else:
            data[place : place + 8] = generator.choice([2**63 - 1, 2**31, 2**40, 0]).to_bytes(8, "little")
        if not data:
            break
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "stream", "config.json", "model.safetensors", "dict.txt"])
def test_damaged_anywhere_it_is_read_or_refused(kind: str, converted: Path, tmp_path: Path) -> None:
    """Four hundred mutations of each kind of file: a model that can be built, or one sentence."""
    generator = random.Random(kind)
    whole = {path.name: path.read_bytes() for path in converted.iterdir()}
    packed = io.BytesIO()
    if kind in ("zip", "stream"):
        torch.save(fairseq.make_checkpoint(), packed, _use_new_zipfile_serialization=kind == "zip")
    refusals = 0
    for _ in range(400):
        if kind in ("zip", "stream"):
            paths: tuple[Any, Any] = tmp_path / "mutated.pt", tmp_path / "dict.txt"
            paths[0].write_bytes(mutated(packed.getvalue(), generator))
        else:
            paths = converted, None
            (converted / kind).write_bytes(mutated(whole[kind], generator))
        try:
            parts = loading.read(*paths)
        except ValueError as error:
            one_sentence(str(error))
            refusals += 1
        else:
            loading.build(parts.config, parts.state)
    assert refusals > 50
