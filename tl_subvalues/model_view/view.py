"""A model as the method sees it: layers, readout pieces, one run with just the activations that are needed."""

import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view.identity import identity
from tl_subvalues.model_view.layers import Layer
from tl_subvalues.model_view.long_prompts import RowsOfRun
from tl_subvalues.model_view.modules import (
    embedding_hooks,
    has_own_softmaxes,
    logit_transform,
    norm_of,
    require_direct_readout,
    softmaxes_of,
)
from tl_subvalues.model_view.releases import activation_cache, model_name, require_traceable, version_of
from tl_subvalues.model_view.running import hook_points_of, left_as_it_was, unembedded_at
from tl_subvalues.model_view.weights import ReadoutPieces
from tl_subvalues.version import __version__

# Bytes of a prompt's patterns from where on they are not kept.
LONG = 1 << 28
# What a model is likely to be that lacks a hook.
_WITHOUT = {
    "resid": "blocks that norm after the addition, as in GPT-1, have no residual stream that a subvalue is added to "
    "and stays in",
    "hook_pattern": "fused attention has no pattern",
    "hook_z": "attention of another kind, such as a mixture of heads, is one piece",
}


@dataclass(frozen=True, eq=False)
class RunBatch:
    """Runs of several prompts: logits at a position and a cache of each; all activations, padded on the left.

    `whole` is None where prompts were run alone.
    """

    runs: list[tuple[Tensor, Any]]
    whole: Any | None


class ModelView:
    """One TransformerLens model, whatever its class and release. Made by `view_of`; holds no copy of the weights."""

    def __init__(self, model: Any) -> None:
        require_traceable(model)
        self.model = model
        self.name = model_name(model)
        self.n_layers = len(model.blocks)

    def layer(self, layer: SupportsIndex) -> Layer:
        """One block.

        Raises:
            ValueError: if there is no such layer.
        """
        number = operator.index(layer) if hasattr(layer, "__index__") and not isinstance(layer, bool) else -1
        if not 0 <= number < self.n_layers:
            raise ValueError(f"layer {layer!r} is out of range: {self.name} has layers 0 to {self.n_layers - 1}.")
        return self.layers[number]

    @cached_property
    def layers(self) -> list[Layer]:
        """All blocks, in order."""
        hook_names = frozenset(self.model.hook_dict)  # asked for once: a bridge collects its aliases anew each time
        return [Layer(self.model, layer, hook_names) for layer in range(self.n_layers)]

    @cached_property
    def readout(self) -> ReadoutPieces:
        """The pieces of the readout.

        Raises:
            UnsupportedModelError: if something else stands between the final norm and the unembedding.
        """
        require_direct_readout(self.model)
        factor, soft_cap = logit_transform(self.model)
        softmaxes = softmaxes_of(self.model)
        bands = max(0, len(softmaxes) - 1)  # each is a class of the head, and no word
        return ReadoutPieces(
            norm=norm_of(self.model._modules.get("ln_final"), self.model.cfg),
            softmaxes=softmaxes,
            normalised=has_own_softmaxes(self.model),
            unembed=self._unembed,
            factor=factor,
            soft_cap=soft_cap,
            d_vocab=sum(s.n_classes for s in softmaxes) - bands if softmaxes else int(self.model.cfg.d_vocab),
        )

    def _unembed(self, normed: Tensor) -> Tensor:
        """The model's own unembedding module, called where it is and in its dtype."""
        unembed = self.model.unembed
        parameter, buffer = next(unembed.parameters(), None), next(unembed.buffers(), None)
        there = normed if parameter is None else normed.to(parameter)
        logits: Tensor = unembed(there if parameter is not None or buffer is None else normed.to(buffer.device))
        return logits.to(normed)

    @property
    def device(self) -> torch.device:
        """Where the readout is, and all computation is done."""
        softmaxes = self.readout.softmaxes
        return softmaxes[0].matrices[0].device if softmaxes else next(self.model.parameters()).device

    @cached_property
    def dtype(self) -> torch.dtype:
        """The model's own dtype, the coarser of its blocks' and its readout's, which sets the tolerances."""
        matrices = [matrix for softmax in self.readout.softmaxes for matrix in softmax.matrices]
        parameters = [next(self.model.blocks.parameters()), *matrices]
        floating = [p.dtype for p in parameters if p.is_floating_point()]
        return max(floating, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)

    def fingerprint(self) -> tuple[tuple[int, int], ...]:
        """Changes whenever a weight is written to or replaced."""
        return tuple((p.data_ptr(), version_of(p)) for p in self.model.parameters())

    def checksum(self) -> dict[str, str]:
        """What says that this is the same model to the bit, in another process or on another device too."""
        return identity(self.model)

    def provenance(self) -> dict[str, str]:
        """What a file of results says of where they come from: this package, the model to the bit, versions, dtype."""
        return {"package": __version__, "model": self.name, **self.checksum(), "dtype": str(self.dtype)}

    @property
    def compute_dtype(self) -> torch.dtype:
        """float64 for a float64 model, float32 for all others."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def hooks(self) -> list[str]:
        """Names of all cached activations that a trace needs of this model.

        Raises:
            UnsupportedModelError: if the model has no attention at all.
        """
        if not any(layer.has_attn for layer in self.layers):
            raise UnsupportedModelError(
                f"{self.name} has no attention sublayer in any layer (a pure state-space model, or one that keeps "
                "attention inside a mixer), so it has no heads and source positions: use a model with attention."
            )
        names: list[str | None] = []
        for layer in self.layers:
            block = f"blocks.{layer.layer}."
            names.append(f"{block}hook_resid_pre")
            if layer.has_attn:
                names += [f"{block}{name}" for name in ("attn.hook_v", "attn.hook_pattern", "attn.hook_z")]
                names.append(layer.post_scale_hook("attn"))
            names += [layer.output_hook(sublayer) for sublayer in layer.sublayers]
            if layer.has_ffn:
                if layer.reads_mid("mlp"):
                    names.append(f"{block}hook_resid_mid")
                names += [layer.neuron_hook(), layer.post_scale_hook("mlp")]
        names.append(f"blocks.{self.n_layers - 1}.hook_resid_post")
        if self.readout.norm is not None:
            names.append("ln_final.hook_scale")
        return [name for name in names if name is not None]

    @cached_property
    def embedding_hooks(self) -> list[str]:
        """Names of what enters the residual stream before layer 0; only activation scores need it."""
        return embedding_hooks(self.model)

    def run_at(self, tokens: Int[Tensor, " pos"], position: int) -> tuple[Float[Tensor, " vocab"], Any]:
        """`run`, to be read at one position: logits there, and a cache.

        A long prompt's cache keeps that position's rows and makes the others again when they are read.
        """
        if self.is_long(len(tokens)) and (rows := self._rows_of(tokens, position)):
            return rows.logits, activation_cache(rows, self.model)
        logits, cache = self.run(tokens, [position])
        return logits[0], cache

    def run(self, tokens: Int[Tensor, " pos"], positions: Sequence[int]) -> tuple[Float[Tensor, "place vocab"], Any]:
        """One forward pass over one prompt: logits at some positions, and an ActivationCache of `hooks()` alone.

        Raises:
            UnsupportedModelError: if the model does not cache one of them, or fails to run.
        """
        needed = set(self.hooks())
        places = [(0, position) for position in positions]
        logits, cache = self._run_with_cache(tokens[None], places, needed | set(self.embedding_hooks))
        missing = sorted(needed - set(cache.keys()))
        if missing:
            why = "; ".join(reason for part, reason in _WITHOUT.items() if any(part in name for name in missing))
            raise UnsupportedModelError(
                f"{self.name} does not cache {', '.join(missing)}, without which its blocks cannot be taken apart"
                f"{f' ({why})' if why else ''}: use a pre-norm model, booted by "
                "TransformerBridge.boot_transformers."
            )
        return logits, cache

    def is_long(self, n_positions: int) -> bool:
        """Whether the patterns of a prompt of so many tokens would fill 256 MB, and one position's rows are kept."""
        return self.patterns_of(n_positions) * self.dtype.itemsize > LONG

    def patterns_of(self, n_positions: int) -> int:
        """How many numbers the patterns of a prompt of so many tokens have, of all layers."""
        heads = int(self.model.cfg.n_heads) * sum(layer.has_attn for layer in self.layers)
        return heads * n_positions**2

    def _rows_of(self, tokens: Int[Tensor, " pos"], position: int) -> RowsOfRun | None:
        """A long prompt's run; None where the model's hooks do not give what its cache would hold."""

        def forward(hooks: Sequence[tuple[str, Any]]) -> Tensor:
            with torch.no_grad():
                return self.logits(tokens[None], [position], hooks)[0]

        names = [*self.hooks(), *self.embedding_hooks]
        try:
            rows = RowsOfRun(forward, dict.fromkeys(names), position, len(tokens))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # said in full by the run that follows
            return None
        return rows if set(self.hooks()) <= set(rows) else None

    def logits(
        self,
        tokens: Int[Tensor, "batch pos"],
        positions: Sequence[int],
        hooks: Sequence[tuple[str, Any]],
        **padding: Tensor,
    ) -> Float[Tensor, "batch vocab"]:
        """Logits at one position of each prompt: a forward pass under hooks that are gone afterwards, come what may."""
        with left_as_it_was(self.model, self._hook_points), self._unembedded_at(tokens, enumerate(positions)) as at:
            return at(self.model.run_with_hooks(tokens, fwd_hooks=list(hooks), **padding))

    def _unembedded_at(
        self, tokens: Tensor, places: Iterable[tuple[int, int]]
    ) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        return unembedded_at(self.model, self._hook_points, tokens.shape, list(places))

    def logits_together(
        self, prompts: Sequence[Int[Tensor, " _"]], positions: Sequence[int], hooks: Sequence[tuple[str, Any]]
    ) -> Float[Tensor, "batch vocab"]:
        """As `logits`, of several prompts, padded on the left so that all end together; each position is its own."""
        tokens, starts, padding = _padded(prompts)
        return self.logits(tokens, _shifted(positions, starts), hooks, **padding)

    @cached_property
    def _hook_points(self) -> list[Any]:
        return hook_points_of(self.model)

    def _run_with_cache(
        self, tokens: Tensor, places: Sequence[tuple[int, int]], wanted: set[str], **keywords: Any
    ) -> tuple[Float[Tensor, "place vocab"], Any]:
        """The model's own `run_with_cache`, with logits at some places (row and position).

        What fails there is told apart from what fails here.
        """
        try:
            with (
                torch.no_grad(),
                left_as_it_was(self.model, self._hook_points),
                self._unembedded_at(tokens, places) as at,
            ):
                logits, cache = self.model.run_with_cache(tokens, names_filter=lambda name: name in wanted, **keywords)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{self.name}: the model's own run_with_cache fails, in TransformerLens, transformers or a hook, "
                f"before anything is decomposed ({type(error).__name__}: {error}); try model(tokens), and "
                "model.run_with_cache(tokens) without a names_filter, to see whether this model can be run at all."
            ) from error
        return at(logits), cache

    def run_batch(self, prompts: Sequence[Tensor], positions: Sequence[int]) -> "RunBatch":
        """One forward pass over several prompts, each read at its position: as `run_at` of each, padding cut off.

        Long prompts are run one by one.

        Prompts of different lengths are padded on the left and masked. Two of them are run alone too, and if a model
        answers otherwise then (its positions or its mask do not allow for padding), every prompt is run alone.
        """
        if len(prompts) == 1:
            return RunBatch([self.run_at(prompts[0], positions[0])], None)
        if self.is_long(max(len(prompt) for prompt in prompts)):
            return self._one_by_one(prompts, positions)
        tokens, starts, padding = _padded(prompts)
        wanted = {*self.hooks(), *self.embedding_hooks}
        # Where each prompt is read, and where it ends.
        ends = [(row, tokens.shape[1] - 1) for row in range(len(prompts))]
        read = list(enumerate(_shifted(positions, starts)))
        both, cache = self._run_with_cache(tokens, read if read == ends else [*read, *ends], wanted, **padding)
        logits, last = both[: len(prompts)], both[-len(prompts) :]
        cached = {name: tensor for name, tensor in cache.items() if name in wanted}
        results = [
            (logits[row], activation_cache(_cut(cached, row, slice(start, None), self._head_first), self.model))
            for row, start in enumerate(starts)
        ]
        # The prompt with the most padding, and the longest that has any: a single token sees nothing of its position.
        padded = [start for start in starts if start]
        judges = {starts.index(max(padded)), starts.index(min(padded))} if padded else set()
        if all(self._agrees_alone(prompts[judge], last[judge]) for judge in judges):
            return RunBatch(results, activation_cache(cached, self.model))
        return self._one_by_one(prompts, positions)

    def _one_by_one(self, prompts: Sequence[Tensor], positions: Sequence[int]) -> "RunBatch":
        return RunBatch([self.run_at(prompt, at) for prompt, at in zip(prompts, positions, strict=True)], None)

    def run_prefixes(self, tokens: Int[Tensor, " pos"], lengths: Sequence[int]) -> list[tuple[Tensor, Any]]:
        """One forward pass over a prompt: logits at the end and a cache of each of its beginnings, as `run_at` gives.

        The shortest is run alone too, and if a model answers otherwise then (its positions depend on the prompt's
        length), every beginning is run alone.
        """
        logits, cache = self.run(tokens, [length - 1 for length in lengths])
        cached = {name: cache[name] for name in cache.keys()}  # noqa: SIM118 (an ActivationCache iterates otherwise)
        results = []
        for length, at_its_end in zip(lengths, logits, strict=True):
            cut = cached if length == len(tokens) else _cut(cached, 0, slice(length), self._head_first)
            results.append((at_its_end, activation_cache(cut, self.model)))
        shortest = min(lengths)
        if shortest == len(tokens) or self._agrees_alone(tokens[:shortest], logits[lengths.index(shortest)]):
            return results
        return [self.run_at(tokens[:length], length - 1) for length in lengths]

    def _agrees_alone(self, prompt: Int[Tensor, " pos"], logits: Float[Tensor, " vocab"]) -> bool:
        """Whether a prompt run alone ends with the same log-probabilities as in a run with others."""
        (alone,), _ = self.run(prompt, [len(prompt) - 1])
        own, other = (x.float().log_softmax(-1) for x in (alone, logits))
        # Company changes the order of summation; 6e-6 nats was seen in float32, half precision rounds more.
        tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1
        return torch.allclose(other, own, rtol=1e-4, atol=tolerance)

    @property
    def _head_first(self) -> frozenset[str]:
        """Names of values that are cached as [batch, head, pos, d_head]."""
        return frozenset(f"blocks.{layer.layer}.attn.hook_v" for layer in self.layers if layer.latent)

    def first_residual(self, tokens: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_model"]:
        """What enters layer 0 for a prompt: computed anew, stopping before that layer's output."""
        name = "blocks.0.hook_resid_pre"
        with torch.no_grad(), left_as_it_was(self.model, self._hook_points):
            _, cache = self.model.run_with_cache(tokens[None], names_filter=lambda n: n == name, stop_at_layer=1)
        return cache[name][0]


def _padded(prompts: Sequence[Int[Tensor, " _"]]) -> tuple[Int[Tensor, "batch pos"], list[int], dict[str, Tensor]]:
    """Prompts in one tensor, filled up on the left; where each begins; the mask that says so, where one is needed."""
    longest = max(len(prompt) for prompt in prompts)
    starts = [longest - len(prompt) for prompt in prompts]
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=prompts[0].device)
    mask = torch.zeros_like(tokens)
    for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        tokens[row, start:], mask[row, start:] = prompt, 1
    return tokens, starts, {"attention_mask": mask} if any(starts) else {}


def _shifted(positions: Sequence[int], starts: Sequence[int]) -> list[int]:
    """Positions of prompts, in the batch that is padded on the left."""
    return [start + position for position, start in zip(positions, starts, strict=True)]


def _cut(cached: dict[str, Tensor], row: int, positions: slice, head_first: frozenset[str]) -> dict[str, Tensor]:
    """One prompt's activations at some positions out of a batch's, as views."""
    one = slice(row, row + 1)
    pattern, values = (one, slice(None), positions, positions), (one, slice(None), positions)
    return {
        name: tensor[pattern if name.endswith("hook_pattern") else values if name in head_first else (one, positions)]
        for name, tensor in cached.items()
    }


def view_of(model: Any) -> ModelView:
    """The view of a TransformerBridge or a HookedTransformer.

    Raises:
        UnsupportedModelError: for any other object, and for a model without a list of blocks.
        ValueError: for a bridge in training mode.
    """
    return model if isinstance(model, ModelView) else ModelView(model)
