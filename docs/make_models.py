"""Measure every tiny architecture of the tests on the running TransformerLens, and write docs/models/<release>.json.

Then docs/models.md is put together from all the JSON files there are. `make models` does it for all releases.
"""

import contextlib
import functools
import importlib.metadata
import io
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]

import models_page  # noqa: E402
from helpers import surroundings, zoo  # noqa: E402, F401 (no network, one thread)
from helpers.further_families import FURTHER, FURTHER_HEADS_ONLY, FURTHER_REFUSED, NOT_LOADED  # noqa: E402
from models_page import NATS, OTHER_MODEL, SUMS  # noqa: E402

import tl_subvalues as tlsv  # noqa: E402
from tl_subvalues.model_view import releases  # noqa: E402

TARGET = 17
# The other further families are dense.
FURTHER_GROUPS = {
    **dict.fromkeys(("deepseek_v2_lite", "olmoe_unnormed", "afmoe", "laguna"), "mixtures"),
    "qwen3_5": "hybrids",
}
ENCODER_DECODERS = ("T5", "Bart")
EXPERTS = {"num_experts": 4, "experts_per_token": 2}

Boot = Callable[[bool], Any]  # of a model, in compatibility mode or not


def tokens() -> torch.Tensor:
    """The tests' prompt: seven random words, [1, pos]."""
    return torch.randint(3, zoo.VOCAB, (1, 7), generator=torch.Generator().manual_seed(20))


def families() -> dict[str, dict[str, tuple[str, Boot]]]:
    """Group -> family -> (what it is, how to boot it), all that the running releases have classes for."""
    own = {"dense": zoo.DENSE, "mixtures": zoo.MIXTURES, "hybrids": zoo.HYBRIDS, "refused": zoo.REFUSED}
    groups: dict[str, dict[str, tuple[str, Boot]]] = {group: {} for group in models_page.GROUPS}
    for group, members in own.items():
        groups[group] = {
            name: (spec[2], functools.partial(loaded, name)) for name, spec in members.items() if known(spec[0])
        }
    for name, spec in {**FURTHER, **FURTHER_HEADS_ONLY, **FURTHER_REFUSED}.items():
        if known(spec[0]):
            group = "refused" if name in FURTHER_REFUSED else FURTHER_GROUPS.get(name, "dense")
            groups[group][name] = spec[2], functools.partial(loaded, name)
    for name, spec in NOT_LOADED.items():
        groups["refused"][name] = spec[2], functools.partial(from_folder, name)
    for name in ENCODER_DECODERS if releases.bridge_class() is not None else ():
        groups["refused"][name.lower()] = f"{name}ForConditionalGeneration", functools.partial(both_halves, name)
    if releases.hooked_class() is not None:
        groups["hooked"] = {name: (said(options), hooked(name)) for name, options in zoo.HOOKED.items()}
        options = {**zoo.HOOKED["rotary_gated_grouped"], **EXPERTS}
        groups["hooked"]["mixture_of_experts"] = said(options), hooked("rotary_gated_grouped", **EXPERTS)
    return {group: members for group, members in groups.items() if members}


def known(config: str) -> bool:
    """Whether the installed transformers has this class of configuration."""
    return hasattr(transformers, config)


def modes(group: str) -> dict[str, bool]:
    """The modes of a group on the running release, and whether each is compatibility mode."""
    if group == "hooked":
        return {"HookedTransformer": False}
    return {"from a folder": False} if releases.bridge_class() is None else {"raw": False, "compatibility mode": True}


def loaded(name: str, compatibility: bool) -> tuple[Any, Any]:
    """A tiny model of the zoo as a bridge, or from a folder on release 2, and the same of Hugging Face."""
    if releases.bridge_class() is None:
        return zoo.from_folder(zoo.hf_model(name), name), zoo.hf_model(name)
    return zoo.bridge(name, compatibility=compatibility), zoo.hf_model(name)


def from_folder(name: str, compatibility: bool) -> tuple[Any, Any]:
    """A tiny model of the zoo as users load it, on every release."""
    return zoo.from_folder(zoo.hf_model(name), name), zoo.hf_model(name)


def both_halves(name: str, compatibility: bool) -> tuple[Any, Any]:
    """An encoder-decoder as a bridge."""
    model = zoo.encoder_decoder(name)
    if compatibility:
        model.enable_compatibility_mode()
    return model, None


def hooked(variant: str, **options: Any) -> Boot:
    """A tiny HookedTransformer."""
    return lambda compatibility: (zoo.hooked(variant, **options), None)


def said(options: dict[str, Any]) -> str:
    """A configuration in words, as it is written in Python."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "defaults"


def measure(boot: Boot, compatibility: bool, prompt: torch.Tensor) -> dict[str, Any]:
    """One model in one mode: its status, the reason or the errors, and what is refused of it."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            model, theirs = boot(compatibility)
        except tlsv.UnsupportedModelError as error:  # of a folder, on release 2
            status = "not converted" if "does not convert" in str(error) else "refused"
            return {"status": status, "reason": in_short(str(error))}
        except Exception as error:
            return {"status": "host fails", "reason": in_short(f"{type(error).__name__}: {error}")}
        try:
            logits, cache = model.run_with_cache(prompt)
        except Exception as error:
            return {"status": "host fails", "reason": in_short(f"{type(error).__name__}: {error}")}
        try:
            trace = tlsv.trace(model, prompt, TARGET)
        except tlsv.UnsupportedModelError as error:
            return {"status": "refused", "reason": in_short(str(error))}
        found = errors_of(model, trace, cache, logits[0].double().log_softmax(-1))
        if theirs is not None:
            off = float((theirs(prompt).logits.double().log_softmax(-1) - logits.double().log_softmax(-1)).abs().max())
            if off > OTHER_MODEL:
                found["off_hugging_face"] = off
    exact = found["sums"] < SUMS and found["readout"] < NATS and found.get("scores", 0.0) < SUMS
    rounded = {key: one_digit(value) if isinstance(value, float) else value for key, value in found.items()}
    return {"status": "exact" if exact else "not exact", **rounded}


def errors_of(model: Any, trace: tlsv.Trace, cache: Any, own: torch.Tensor) -> dict[str, Any]:
    """Worst errors of sums, readout and scores, and the parts that are refused."""
    sums: list[float] = []
    scores: list[float] = []
    refused: dict[str, str] = {}

    def attempt(part: str, errors: list[float], work: Callable[[], list[float]]) -> None:
        try:
            errors += work()
        except tlsv.UnsupportedModelError as error:
            refused[part] = in_short(str(error))

    layers = trace.layers()
    for by, part in (("head", "heads"), ("head_position", "source positions"), ("neuron", "attention neurons")):
        stacks = functools.partial(tlsv.attn_subvalues, by=by)
        attempt(part, sums, functools.partial(sum_errors, model, cache, layers, "attn", stacks))
    attempt("FFN neurons", sums, functools.partial(sum_errors, model, cache, layers, "mlp", tlsv.ffn_subvalues))
    for kind in ("FFN neurons", "attention neurons"):
        if kind not in refused and (kind != "FFN neurons" or "mlp" in set(layers["sublayer"])):
            attempt(f"activation scores of {kind}", scores, functools.partial(score_errors, trace, cache, kind))
    last = cache[f"blocks.{len(model.blocks) - 1}.hook_resid_post"][0]
    found = [trace.readout.log_probs(last[-1]) - own[-1], tlsv.Readout(model, scale="recomputed").log_probs(last) - own]
    errors: dict[str, Any] = {"sums": max(sums), "readout": max(float(error.abs().max()) for error in found)}
    return errors | ({"scores": max(scores)} if scores else {}) | ({"parts_refused": refused} if refused else {})


def sum_errors(model: Any, cache: Any, layers: Any, sublayer: str, stacks: Callable[..., Any]) -> list[float]:
    """Of every such sublayer: parts and bias against its output, over all positions, relative to its largest entry."""
    errors = []
    for layer in layers.loc[layers["sublayer"] == sublayer, "layer"].tolist():
        whole = cache[f"blocks.{layer}.hook_{sublayer}_out"].double()
        stack = stacks(model, cache, layer, incl_bias=True, pos_slice=None).double()
        errors.append(float((stack.sum(0) - whole).abs().max() / whole.abs().max()))
    return errors


def score_errors(trace: tlsv.Trace, cache: Any, kind: str) -> list[float]:
    """Of the neuron with the largest coefficient in the last layer: scores against what the model computed."""
    table = trace.ffn_neurons(top=None) if kind == "FFN neurons" else trace.attn_neurons(top=None)
    table = table[table["layer"] == table["layer"].max()]
    row = table.loc[table["coefficient"].abs().idxmax()]
    scores = trace.activations(row["label"])
    block = f"blocks.{row['layer']}."
    whole = row["coefficient"]
    if scores.attrs["sums_to"] == "pre-activation":
        whole = float(cache[f"{block}mlp.hook_pre"].flatten(2)[0, -1, row["neuron"]])
    elif scores.attrs["sums_to"] == "value":
        whole = whole / float(cache[f"{block}attn.hook_pattern"][0, row["head"], -1, row["position"]])
    return [abs(float(scores["score"].astype(float).sum()) - whole) / abs(whole)]


def in_short(message: str) -> str:
    """The first sentence of a message, without the model's name in front, sizes of errors and the way out."""
    text = re.sub(r" \(off by [^)]*\)", "", " ".join(message.split()))
    text = re.sub(r"^/\S+: ", "", text)
    text = re.sub(r"^[\w-]+(?<!Error)( \(\w+\))?(: | (?=has |does |passes ))", "", text)
    sentence = re.split(r"(?<=[^.])\. |; |: use |, so ", text)[0].rstrip(".")
    return sentence if len(sentence) <= 300 else sentence[:298].rsplit(" ", 1)[0] + " …"


def one_digit(error: float) -> float:
    """Rounded to one significant digit, so that another machine gives the same."""
    return float(f"{error:.0e}")


def main() -> None:
    """Measure on the running release, and put the page together."""
    versions = {name: importlib.metadata.version(name) for name in ("transformer_lens", "transformers", "torch")}
    prompt = tokens()
    found = {
        group: {
            name: {"model": what} | {mode: measure(boot, flag, prompt) for mode, flag in modes(group).items()}
            for name, (what, boot) in members.items()
        }
        for group, members in families().items()
    }
    path = models_page.FOLDER / f"{versions['transformer_lens']}.json"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps({"versions": versions, "groups": found}, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    models_page.PAGE.write_text(models_page.page(), encoding="utf-8")


if __name__ == "__main__":
    main()
