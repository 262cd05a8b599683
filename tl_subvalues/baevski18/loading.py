"""Loading the model: from a fairseq checkpoint and its dict.txt, or from a folder that `convert` wrote."""

import dataclasses
import importlib.util
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tl_subvalues.baevski18.checkpoint import (
    convert_state,
    count_words,
    final_norm_is_dropped,
    read_checkpoint,
    require_layers,
    require_numbers,
    shapes,
)
from tl_subvalues.baevski18.configuration import Baevski18Config, config
from tl_subvalues.baevski18.dictionary import make_tokenizer, read_dictionary
from tl_subvalues.baevski18.modeling import ARCHITECTURE, Baevski18ForCausalLM, HFConfig
from tl_subvalues.baevski18.options import config_of, options_of
from tl_subvalues.errors import UnknownWordsWarning, UnsupportedModelError, shown, told

NAME = "transformer_lm.wiki103.adaptive"
_CONFIG, _WEIGHTS, _DICTIONARY = "config.json", "model.safetensors", "dict.txt"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_LONGEST_CONFIG = 100_000  # characters; one of full size has 350
_SMALL_TABLE = 2**22  # numbers, 16 MB: positions may outgrow a model of less
_MOST_MASKS = 2**32  # bytes; the published model's are 151 MB


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a model is made of, read and checked."""

    config: Baevski18Config
    words: list[str]
    state: dict[str, Tensor]


def load(
    checkpoint: str | Path,
    dictionary: str | Path | None = None,
    *,
    device: Any = None,
    dtype: torch.dtype = torch.float32,
    hooked: bool = False,
) -> Any:
    """Baevski & Auli's model, ready to trace: a TransformerBridge with a tokenizer of its dictionary.

    Its logits are the log-probabilities of its adaptive softmax.

    Args:
        checkpoint: a fairseq checkpoint (`model.pt` of the published archive), or a folder: one that `convert` wrote,
            or the unpacked archive, with model.pt and dict.txt in it.
        dictionary: the checkpoint's dict.txt; for a folder, the one in it unless another is named.
        device: where to put it; None is a GPU if there is one.
        dtype: of the weights.
        hooked: a HookedTransformer instead, on TransformerLens 3.

    Raises:
        UnsupportedModelError: for a checkpoint of another architecture, or one that would have to be run to be read.
        FileNotFoundError: if a file is not there.
        ValueError: for files that are truncated, or do not go together.
    """
    _require_bridges()
    parts = read(checkpoint, dictionary, dtype)
    if hooked:
        _require_masks_fit(parts.config)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = make_tokenizer(parts.words, bos_token=parts.config.bos_token, n_ctx=parts.config.n_ctx)
    model = build(parts.config, parts.state).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)  # TransformerLens tries the tokenizer on an "a"
        if hooked:
            from tl_subvalues.baevski18.hooked import boot_hooked

            return boot_hooked(model, tokenizer, NAME)
        from tl_subvalues.baevski18.bridge import boot_bridge

        return boot_bridge(model, tokenizer, NAME)


def _require_bridges() -> None:
    """Refuse a TransformerLens that takes no architectures from outside (before 3.9).

    Raises:
        UnsupportedModelError: saying which release does.
    """
    if importlib.util.find_spec("transformer_lens.model_bridge") is None:
        raise UnsupportedModelError(
            "Baevski & Auli's model needs TransformerLens 3.9 or newer, which takes architectures from other packages: "
            "pip install -U transformer_lens."
        )


def _require_masks_fit(shape: Baevski18Config) -> None:
    """Refuse a context for which a HookedTransformer's masks, n_ctx² bytes in every layer, would exhaust memory.

    Raises:
        UnsupportedModelError: with the way out.
    """
    if shape.n_layers * shape.n_ctx**2 > _MOST_MASKS:
        raise UnsupportedModelError(
            f"a HookedTransformer keeps a mask of {shape.n_ctx} × {shape.n_ctx} in each of {shape.n_layers} layers, "
            "too much for most machines; leave hooked=False for a bridge."
        )


def convert(checkpoint: str | Path, dictionary: str | Path, out: str | Path) -> None:
    """Write a fairseq checkpoint as a folder of safetensors, configuration and dictionary, which holds no pickle.

    Raises:
        FileExistsError: if the folder is there and not empty.
        OSError: if it cannot be written.
        UnsupportedModelError, FileNotFoundError, ValueError: as `load`.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{shown(out)}: is there already; name a new folder.")
    parts = read(checkpoint, dictionary)
    out.mkdir(parents=True, exist_ok=True)
    fields = {"model_type": HFConfig.model_type, "architectures": [ARCHITECTURE], **dataclasses.asdict(parts.config)}
    (out / _CONFIG).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(dictionary, out / _DICTIONARY)
    try:
        save_file(parts.state, out / _WEIGHTS, {"format": "pt"})
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{shown(out / _WEIGHTS)}: could not be written ({told(error)}); remove {shown(out)}.") from error


def read(checkpoint: str | Path, dictionary: str | Path | None, dtype: torch.dtype = torch.float32) -> Contents:
    """Configuration, words and weights, from any of the forms that `load` takes."""
    checkpoint = Path(checkpoint)
    if checkpoint.is_dir():
        dictionary = dictionary or checkpoint / _DICTIONARY
        if (checkpoint / _CONFIG).is_file():
            return _read_converted(checkpoint, dictionary, dtype)
        checkpoint = checkpoint / "model.pt"
    if dictionary is None:
        raise ValueError(
            f"{shown(checkpoint)}: a checkpoint needs its dictionary; name the dict.txt of the same archive."
        )
    words = read_dictionary(dictionary)
    loaded = read_checkpoint(checkpoint)
    state = loaded.pop("model")
    shape = config_of(options_of(loaded), count_words(state), drops_final_norm=final_norm_is_dropped(state))
    del loaded  # an optimizer's state may be as large as the model
    _require_as_many(words, shape, dictionary)
    converted = convert_state(state, shape, dtype)
    _require_length(shape)
    return Contents(shape, words, converted)


def build(shape: Baevski18Config, state: dict[str, Tensor]) -> Baevski18ForCausalLM:
    """The module around these tensors, none of them copied; it is in evaluation mode."""
    with torch.device("meta"):
        model = Baevski18ForCausalLM(HFConfig(shape))
    model.load_state_dict(state, assign=True)
    weight: Tensor = model.embed_tokens.words[0].weight
    model.embed_positions.reset(weight.device, weight.dtype)
    return model.eval()


def _read_converted(folder: Path, dictionary: str | Path, dtype: torch.dtype) -> Contents:
    shape = _read_config(folder)
    words = read_dictionary(dictionary)
    _require_as_many(words, shape, dictionary)
    weights = folder / _WEIGHTS
    try:
        with safe_open(weights, framework="pt") as file:
            described = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            found = {name: tuple(part.get_shape()) for name, part in described.items()}
            kinds = {part.get_dtype() for part in described.values()}
        if not kinds <= _FLOATS:
            raise ValueError(
                f"{shown(weights)}: holds {', '.join(sorted(kinds - _FLOATS))}, not floating-point numbers; convert "
                "the checkpoint again."
            )
        _require_match(folder, found, shape)
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{shown(weights)}: missing or truncated; convert the checkpoint again.") from error
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    require_numbers(state)
    _require_length(shape)
    return Contents(shape, words, state)


def _read_config(folder: Path) -> Baevski18Config:
    """The configuration in a folder that `convert` wrote."""
    path = folder / _CONFIG
    try:
        with path.open(encoding="utf-8") as file:
            fields = json.loads(file.read(_LONGEST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)}: not JSON; convert the checkpoint again.") from error
    if not isinstance(fields, dict) or fields.get("model_type") != HFConfig.model_type:
        raise ValueError(f"{shown(folder)}: not a folder that 'tl-subvalues convert' wrote.")
    sizes = {name: value for name, value in fields.items() if name not in ("model_type", "architectures")}
    try:
        return config(**sizes)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error}") from error


def _require_match(folder: Path, found: Mapping[str, tuple[int, ...]], shape: Baevski18Config) -> None:
    """Refuse weights that are not those of the configuration."""
    require_layers(found, shape)
    if found != shapes(shape):
        raise ValueError(f"{shown(folder)}: {_WEIGHTS} does not go with {_CONFIG}; convert the checkpoint again.")


def _require_length(shape: Baevski18Config) -> None:
    """Refuse a context whose table of positions, which no file holds, would be larger than the whole model.

    Raises:
        ValueError: saying so.
    """
    if shape.n_ctx * shape.d_model > max(shape.n_parameters, _SMALL_TABLE):
        raise ValueError(
            f"a context of {shape.n_ctx} positions takes more numbers than the model, which has "
            f"{shape.n_parameters:,}; the option max_target_positions, or n_ctx, cannot be right."
        )


def _require_as_many(words: list[str], shape: Baevski18Config, dictionary: str | Path) -> None:
    if len(words) != shape.d_vocab:
        raise ValueError(
            f"{shown(dictionary)}: {len(words)} words (4 special ones included), where the checkpoint has "
            f"{shape.d_vocab}; take the dict.txt of the same archive."
        )
