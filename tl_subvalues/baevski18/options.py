"""fairseq's options of a checkpoint, as a configuration: each is used, ignored by name, or refused.

Sources: fairseq's `transformer_lm` and its command lines of spring 2019, May 2020 and since October 2020, whose names
for the same thing differ.
"""

import argparse
import logging
from collections.abc import Mapping
from typing import Any

from tl_subvalues.baevski18.configuration import Baevski18Config
from tl_subvalues.errors import UnsupportedModelError, shown, shown_value

_log = logging.getLogger(__name__)
_SHOWN = 5

# Read below.
USED = {
    "decoder_layers",
    "decoder_attention_heads",
    "decoder_embed_dim",
    "decoder_ffn_embed_dim",
    "decoder_input_dim",
    "decoder_output_dim",
    "adaptive_input_cutoff",
    "adaptive_softmax_cutoff",
    "adaptive_input_factor",
    "adaptive_softmax_factor",
    "tie_adaptive_weights",
    "tie_adaptive_proj",
    "no_tie_adaptive_proj",
    "no_decoder_final_norm",
    "decoder_final_norm",
    "max_target_positions",
    "tokens_per_sample",
    "activation_fn",
    "add_bos_token",
    "adaptive_input",
    "decoder_normalize_before",
    "output_dictionary_size",
}
# These would make another architecture: refused if set.
REFUSED_IF_SET = (
    "no_scale_embedding",
    "layernorm_embedding",
    "decoder_learned_pos",
    "character_embeddings",
    "no_token_positional_embeddings",
    "share_decoder_input_output_embed",
    "scale_fc",
    "scale_attn",
    "scale_heads",
    "scale_resids",
    "base_layers",
    "decoder_layers_to_keep",
    "decoder_xformers_att_config",
    "use_stable_embedding",
)
# Of training (dropout, memory) or without effect unless one of the above is set.
IGNORED = {
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "relu_dropout",
    "adaptive_softmax_dropout",
    "decoder_layerdrop",
    "quant_noise_pq",
    "quant_noise_pq_block_size",
    "quant_noise_scalar",
    "checkpoint_activations",
    "offload_activations",
    "min_params_to_wrap",
    "base_sublayers",
    "base_shuffle",
    "character_filters",
    "character_embedding_dim",
    "char_embedder_highway_layers",
    "tpu",
    "_name",
    "arch",
}
# What an option of the architecture is called like; any other name is one of training, data or logging.
_ARCHITECTURAL = (
    "decoder_",
    "adaptive_",
    "tie_",
    "no_tie_",
    "share_",
    "scale_",
    "layernorm_",
    "no_decoder_",
    "no_scale_",
)


def options_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options in a checkpoint of either style (`args`, or `cfg` since October 2020), the task's beneath.

    Raises:
        UnsupportedModelError: if it is a checkpoint of another kind of model.
        ValueError: if it holds no options.
    """
    args, cfg = checkpoint.get("args"), checkpoint.get("cfg")
    if args is not None:
        options = _plain(args, "args")
        name = options.get("arch")
    elif cfg is not None:
        groups = _plain(cfg, "cfg")
        model = _plain(groups.get("model"), "cfg['model']")
        task = groups.get("task")
        options = {**({} if task is None else _plain(task, "cfg['task']")), **_set(model)}
        options["add_bos_token"] = bool(model.get("add_bos_token") or options.get("add_bos_token"))
        name = model.get("_name") or model.get("arch")
        # What is not the model's is the task's and of no concern but for what is read here.
        options = {key: value for key, value in options.items() if key in model or key in USED}
    else:
        raise ValueError("the checkpoint has neither 'args' nor 'cfg', so its sizes are not known; was it re-saved?")
    if isinstance(name, str) and not name.startswith("transformer_lm"):
        raise UnsupportedModelError(
            f"the checkpoint is of a {shown_value(name)}, not of a transformer_lm: only those can be loaded."
        )
    return options


def config_of(options: Mapping[str, Any], d_vocab: int, *, drops_final_norm: bool = False) -> Baevski18Config:
    """A configuration from a checkpoint's options.

    Args:
        options: as `options_of` gives them.
        d_vocab: number of word vectors in the checkpoint, over all bands.
        drops_final_norm: whether the checkpoint is so old (`decoder.version` <= 2) that fairseq drops its final norm.

    Raises:
        UnsupportedModelError: for an option that makes another architecture, naming it.
        ValueError: for sizes that are missing or do not go together.
    """
    _refuse_other_architectures(options, drops_final_norm)
    d_model = _number(options, "decoder_embed_dim")
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if options.get(name) not in (None, d_model):
            raise UnsupportedModelError(
                f"{name} is {shown_value(options[name])}, other than decoder_embed_dim {d_model}: not covered."
            )
    cutoffs = _cutoffs(options.get("adaptive_input_cutoff"), "adaptive_input_cutoff")
    factor = _factor(options, "adaptive_input_factor")
    if _cutoffs(options.get("adaptive_softmax_cutoff"), "adaptive_softmax_cutoff") != cutoffs:
        raise UnsupportedModelError("adaptive_softmax_cutoff is other than adaptive_input_cutoff: not covered.")
    if _factor(options, "adaptive_softmax_factor") != factor:
        raise UnsupportedModelError("adaptive_softmax_factor is other than adaptive_input_factor: not covered.")
    tied = options.get("tie_adaptive_proj") or options.get("no_tie_adaptive_proj") is False
    context = "max_target_positions" if options.get("max_target_positions") else "tokens_per_sample"
    return Baevski18Config(
        n_layers=_number(options, "decoder_layers"),
        n_heads=_number(options, "decoder_attention_heads"),
        d_model=d_model,
        d_mlp=_number(options, "decoder_ffn_embed_dim"),
        d_vocab=d_vocab,
        cutoffs=cutoffs,
        factor=factor,
        n_ctx=_number(options, context),
        tied_projections=bool(tied),
        bos_token="<s>" if options.get("add_bos_token") else "</s>",
    )


def _refuse_other_architectures(options: Mapping[str, Any], drops_final_norm: bool) -> None:
    problems = [f"{name} is set" for name in REFUSED_IF_SET if options.get(name)]
    problems += [
        f"{name} is not set"
        for name in ("adaptive_input", "decoder_normalize_before", "tie_adaptive_weights")
        if not options.get(name)
    ]
    if (activation := options.get("activation_fn") or "relu") != "relu":
        problems.append(f"activation_fn is {shown_value(activation)}")
    size = options.get("output_dictionary_size")
    if size is not None and not (isinstance(size, int | float) and size < 0):
        problems.append(f"output_dictionary_size is {shown_value(size)}")
    if not drops_final_norm and _has_final_norm(options):
        problems.append("there is a final norm (no_decoder_final_norm is not set)")
    known = USED | IGNORED | set(REFUSED_IF_SET)
    unknown = {name: value for name, value in options.items() if name not in known}
    problems += [
        f"{shown(name, 60)} is {shown_value(value)}, which is not known"
        for name, value in unknown.items()
        if name.startswith(_ARCHITECTURAL) and value not in (None, False, 0, "")
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more of the kind" if len(problems) > _SHOWN else ""
        raise UnsupportedModelError(
            f"not the architecture of Baevski & Auli's model: {'; '.join(problems[:_SHOWN])}{more}."
        )
    _log.debug("options of training, without effect on the model: %s", ", ".join(sorted(unknown)))


def _has_final_norm(options: Mapping[str, Any]) -> bool:
    """By the names of 2019 (`no_tie_adaptive_proj`: never; `decoder_final_norm`) or those since."""
    if "decoder_final_norm" in options:
        return bool(options["decoder_final_norm"])
    if "no_tie_adaptive_proj" in options:
        return False
    return not options.get("no_decoder_final_norm")


def _plain(options: Any, what: str) -> dict[str, Any]:
    """Options by their names.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(options, argparse.Namespace):
        return dict(vars(options))
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"the checkpoint's {what} is a {type(options).__name__}, not a table of options.")
    return dict(options)


def _set(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _factor(options: Mapping[str, Any], name: str) -> float:
    """A factor between the widths of bands; fairseq's is 4 where none is said."""
    value = options.get(name)
    try:
        return 4.0 if value is None else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the checkpoint's option {name} is {shown_value(value)}, not a number.") from error


def _number(options: Mapping[str, Any], name: str) -> int:
    value = options.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"the checkpoint's option {name} is {shown_value(value)}, not a whole number.")
    return value


def _cutoffs(value: Any, name: str) -> tuple[int, ...]:
    """'20000,60000', or a list of numbers."""
    pieces = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(int(piece) for piece in pieces)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"the checkpoint's option {name} is {shown_value(value)}, not numbers like '20000,60000'."
        ) from error
