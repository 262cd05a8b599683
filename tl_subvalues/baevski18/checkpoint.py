"""A fairseq checkpoint read without running it, and every key of it accounted for."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_subvalues.baevski18.configuration import Baevski18Config
from tl_subvalues.baevski18.pickles import TensorAt
from tl_subvalues.baevski18.storages import Read, numbers_of, opened, tensors
from tl_subvalues.errors import UnsupportedModelError, shown, shown_value

# Buffers: versions, and uninitialised memory (NaN or anything) that fairseq keeps to learn the device from.
_BUFFERS = re.compile(
    r"version|embed_tokens\._float_tensor|embed_positions\.(_float_tensor|weights)"
    r"|adaptive_softmax\.(version|head\._float_tensor)"
)
_CLASSES = "adaptive_softmax.head.class_proj.weight"
# Names of layer norms before 2019; 1 belongs to attention over an encoder, which a language model does not have.
_OLD_NORMS = {"layer_norms.0": "self_attn_layer_norm", "layer_norms.2": "final_layer_norm"}
_LAYER = {
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.k_proj",
    "self_attn.v_proj": "self_attn.v_proj",
    "self_attn.out_proj": "self_attn.out_proj",
    "self_attn_layer_norm": "self_attn_layer_norm",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "final_layer_norm": "final_layer_norm",
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a fairseq checkpoint holds: `model` and `args` or `cfg`, and more that is left alone.

    Raises:
        FileNotFoundError: if there is no such file.
        UnsupportedModelError: if the pickle asks for anything but tensors and plain data; nothing of it is run.
        ValueError: if the file is damaged, no checkpoint, or claims to hold more than it does.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)}: there is no such checkpoint.")
    try:
        with opened(path) as (content, read):
            if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
                raise ValueError("not a fairseq checkpoint, which would hold 'model' beside 'args' or 'cfg'")
            return {**content, "model": _tensors(content["model"], read)}
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{shown(path)}: {str(error).removesuffix('.')}.") from error
    except ValueError as error:
        reason = "an archive; unpack it and name the model.pt in it" if _is_archive(path) else error
        raise ValueError(f"{shown(path)}: {reason}.") from error


def _is_archive(path: Path) -> bool:
    """Whether a file begins as a tar archive does, packed or not."""
    with path.open("rb") as file:
        head = file.read(262)
    return head.startswith((b"BZh", b"\x1f\x8b", b"\xfd7zXZ")) or head[257:] == b"ustar"


def _tensors(state: Mapping[Any, Any], read: Read) -> dict[str, Tensor]:
    """The model's tensors, out of what the pickle says of them."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, TensorAt):
            raise ValueError(f"its {shown_value(name)} is a {type(value).__name__}, not a tensor")
    # The output's copies share their memory with what they are tied to; no others do.
    own = {name: place for name, place in state.items() if not name.startswith("decoder.adaptive_softmax.")}
    claimed, there = numbers_of(own)
    if claimed > there:
        raise ValueError(f"its tensors have {claimed:,} numbers together, where the file holds {there:,}")
    return tensors(state, read)


def final_norm_is_dropped(state: Mapping[str, Tensor]) -> bool:
    """Whether fairseq drops the final norm of a checkpoint so old (`decoder.version` missing or at most 2).

    Raises:
        ValueError: if `decoder.version` is no number.
    """
    version = state.get("decoder.version")
    if version is None:
        return True
    if version.numel() != 1 or version.is_complex():
        raise ValueError(f"the checkpoint's decoder.version has shape {tuple(version.shape)}, and is no number.")
    return float(version) <= 2


def count_words(state: Mapping[str, Tensor]) -> int:
    """Number of word vectors in a checkpoint, over all bands.

    Raises:
        UnsupportedModelError: if it has no adaptive input.
    """
    tables = [
        t
        for name, t in state.items()
        if re.fullmatch(r"decoder\.embed_tokens\.embeddings\.\d+\.0\.weight", name) and t.ndim == 2
    ]
    if not tables:
        raise UnsupportedModelError(
            "the checkpoint has no adaptive input (decoder.embed_tokens.embeddings): not covered."
        )
    return sum(len(table) for table in tables)


def require_layers(state: Mapping[str, Any], config: Baevski18Config) -> None:
    """Refuse more layers than there are tensors of, before a list of them is made.

    Raises:
        ValueError: saying how many there are.
    """
    there = len({found[1] for name in state if (found := re.match(r"(?:decoder\.)?layers\.(\d+)\.", name))})
    if config.n_layers > there:
        raise ValueError(f"{config.n_layers} layers are asked for, where the file holds tensors of {there}.")


def require_numbers(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no floating-point numbers, and numbers that are not finite.

    Raises:
        ValueError: naming the first such tensor.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{shown(name)} holds {tensor.dtype}, not floating-point numbers.")
        if tensor.numel() and not all(map(math.isfinite, map(float, tensor.aminmax()))):
            raise ValueError(f"{shown(name)} holds numbers that are not finite in {tensor.dtype} (NaN or infinity).")


def shapes(config: Baevski18Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a model has, by its name in `modeling.py`."""
    return dict(_table(config).values())


def convert_state(
    state: Mapping[str, Tensor], config: Baevski18Config, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A checkpoint's tensors by the names of `modeling.py`: each used once, a copy checked equal, or ignored by name.

    Raises:
        UnsupportedModelError: for a final norm.
        ValueError: listing the tensors that are missing, left over or of another shape, or that differ from what they
            are tied to; if one holds a number that is not finite; for more layers than there are.
    """
    tensors = _upgraded(state)
    if finals := [name for name in tensors if name.startswith("layer_norm.")]:
        raise UnsupportedModelError(f"the checkpoint has a final norm ({finals[0]}): not Baevski & Auli's model.")
    require_layers(state, config)
    wanted, copies = _table(config), _tied(config)
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{shown(name)} is not known" for name in tensors if name not in wanted and name not in copies]
    for name, (_, shape) in wanted.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            problems.append(f"{name} has shape {tuple(tensors[name].shape)}, not {shape}")
        if name in tensors and not tensors[name].is_floating_point():
            problems.append(f"{name} holds {tensors[name].dtype}, not floating-point numbers")
    if not problems:
        problems += [
            f"{copy} differs from {original}, to which it is tied"
            for copy, original in copies.items()
            if copy in tensors and not _same(tensors[copy], tensors[original])
        ]
    if problems:
        more = f", and {len(problems) - 5} more of the kind" if len(problems) > 5 else ""
        raise ValueError(f"the checkpoint's tensors are not those of its options: {'; '.join(problems[:5])}{more}.")
    converted = {own: tensors[name].detach().to(dtype).contiguous() for name, (own, _) in wanted.items()}
    require_numbers(converted)
    return converted


def _upgraded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of today for those of 2018 and 2019, as fairseq upgrades them on load; `decoder.` and buffers dropped."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("decoder."):
            raise UnsupportedModelError(
                f"the checkpoint has {shown(name)}, which is outside a decoder: not a language model."
            )
        name = name.removeprefix("decoder.")
        if _BUFFERS.fullmatch(name) or (name == _CLASSES and not tensor.numel()):  # no classes where there is one band
            continue
        if fused := re.fullmatch(r"(layers\.\d+\.self_attn)\.in_proj_(weight|bias)", name):
            if tensor.ndim == 0 or len(tensor) % 3:
                raise ValueError(f"the checkpoint's {name} has shape {tuple(tensor.shape)}, not that of q, k and v.")
            # Copies, so that the three do not keep one another's memory.
            for kind, rows in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"{fused[1]}.{kind}_proj.{fused[2]}"] = rows.clone()
            continue
        for old, new in _OLD_NORMS.items():
            name = name.replace(f".{old}.", f".{new}.")
        if name in tensors:
            raise ValueError(f"the checkpoint holds {shown(name)} twice, by its old name and by its new one.")
        tensors[name] = tensor
    return tensors


def _table(config: Baevski18Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """From fairseq's name to our name and the shape, for every tensor that is used."""
    d = config.d_model
    names: dict[str, tuple[str, tuple[int, ...]]] = {}
    for b, band in enumerate(config.bands):
        names[f"embed_tokens.embeddings.{b}.0.weight"] = (f"embed_tokens.words.{b}.weight", (band.size, band.width))
        names[f"embed_tokens.embeddings.{b}.1.weight"] = (f"embed_tokens.projections.{b}.weight", (d, band.width))
    shapes: dict[str, tuple[int, ...]] = {"fc1": (config.d_mlp, d), "fc2": (d, config.d_mlp)}
    for layer in range(config.n_layers):
        for theirs, ours in _LAYER.items():
            shape: tuple[int, ...] = (d,) if "norm" in theirs else shapes.get(theirs, (d, d))
            for kind, size in (("weight", shape), ("bias", shape[:1])):
                names[f"layers.{layer}.{theirs}.{kind}"] = (f"layers.{layer}.{ours}.{kind}", size)
    tails = config.bands[1:]
    if tails:
        names[_CLASSES] = ("lm_head.classes.weight", (len(tails), d))
    if not config.tied_projections:
        for i, band in enumerate(tails):
            names[f"adaptive_softmax.tail.{i}.0.weight"] = (f"lm_head.projections.{i}.weight", (band.width, d))
    return names


def _tied(config: Baevski18Config) -> dict[str, str]:
    """Copies of tied tensors: fairseq's name of the copy -> of the original."""
    copies = {"adaptive_softmax.head.word_proj.weight": "embed_tokens.embeddings.0.0.weight"}
    for i in range(len(config.bands) - 1):
        copies[f"adaptive_softmax.tail.{i}.2.weight"] = f"embed_tokens.embeddings.{i + 1}.0.weight"
        if config.tied_projections:
            copies[f"adaptive_softmax.tail.{i}.0.weight"] = f"embed_tokens.embeddings.{i + 1}.1.weight"
    return copies


def _same(copy: Tensor, original: Tensor) -> bool:
    """Equal, NaN included; a copy that shares its storage is not compared."""
    if copy.shape != original.shape:
        return False
    if copy.data_ptr() == original.data_ptr() and copy.stride() == original.stride():
        return True
    return torch.allclose(copy.to(original.dtype), original, rtol=0, atol=0, equal_nan=True)
