"""Activations of one run by the method's names, with a batch dimension whether or not the cache has one."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.model_view.experts import Routed
from tl_subvalues.model_view.indexing import Positions
from tl_subvalues.model_view.long_prompts import RowsOfRun
from tl_subvalues.model_view.releases import version_of
from tl_subvalues.model_view.view import ModelView


class Activations:
    """An ActivationCache read through a `ModelView`: tensors in the compute dtype, on the readout's device."""

    def __init__(self, view: ModelView, cache: Any) -> None:
        if not hasattr(cache, "__getitem__") or not hasattr(cache, "keys"):
            raise ValueError(f"cache is an ActivationCache, as run_with_cache returns it, got {type(cache).__name__}.")
        self._view = view
        self._cache = cache
        self._names = set(cache.keys())
        lines = getattr(cache, "cache_dict", None)
        self._rows = lines if isinstance(lines, RowsOfRun) else None
        self._batched = bool(getattr(cache, "has_batch_dim", True))

    def require(self, names: list[str]) -> None:
        """Raise one error that lists all of `names` that the cache lacks.

        Raises:
            KeyError: naming every missing hook and the call that caches them.
        """
        missing = [name for name in names if name not in self._names]
        if missing:
            raise KeyError(
                f"the cache lacks {len(missing)} of the activations needed: {', '.join(missing)}; run "
                "model.run_with_cache(tokens) without a names_filter, or leave cache=None to have the model run."
            )

    def has(self, name: str) -> bool:
        """Whether the cache holds an activation."""
        return name in self._names

    def require_heads(self, layer: int) -> int:
        """Require what a layer's heads are made of; the number of query positions.

        Raises:
            KeyError: naming every missing hook.
        """
        self._require_sublayer(layer, "attn", ["hook_z"])
        return int(self._shape(f"blocks.{layer}.attn.hook_z")[1])

    def require_sources(self, layer: int) -> int:
        """Require what a layer's heads read from each source position; the number of query positions.

        Raises:
            KeyError: naming every missing hook.
        """
        self._require_sublayer(layer, "attn", ["hook_pattern", "hook_v"])
        return int(self._shape(f"blocks.{layer}.attn.hook_pattern")[2])

    def require_neurons(self, layer: int) -> int:
        """Require what a layer's FFN neurons are made of; the number of positions.

        Raises:
            KeyError: naming every missing hook.
        """
        mixture = self._view.layer(layer).mixture() is not None
        self._require_sublayer(layer, "mlp", ["hook_in"] if mixture else ["hook_post"])
        if mixture:
            self.require([f"blocks.{layer}.hook_mlp_out"])
        return int(self._shape(f"blocks.{layer}.mlp.{'hook_in' if mixture else 'hook_post'}")[1])

    def _require_sublayer(self, layer: int, sublayer: str, names: list[str]) -> None:
        hooks = [f"blocks.{layer}.{sublayer}.{name}" for name in names]
        post_scale = self._view.layer(layer).post_scale_hook(sublayer)
        self.require([*hooks, post_scale] if post_scale else hooks)

    def residual(
        self, layer: int, sublayer: str, positions: Positions = slice(None)
    ) -> Float[Tensor, "batch *pos d_model"]:
        """The residual stream that a sublayer reads: x_pre for attention and mixers, x_mid for an FFN after it."""
        stage = "mid" if self._view.layer(layer).reads_mid(sublayer) else "pre"
        return self._get(f"blocks.{layer}.hook_resid_{stage}", positions)

    def final_residual(self, positions: Positions = slice(None)) -> Float[Tensor, "batch *pos d_model"]:
        """The residual stream after the last block."""
        return self._get(f"blocks.{self._view.n_layers - 1}.hook_resid_post", positions)

    def output(
        self, layer: int, sublayer: str, positions: Positions = slice(None)
    ) -> Float[Tensor, "batch *pos d_model"]:
        """What a sublayer adds to the residual stream (after a post-norm and a residual multiplier)."""
        return self._get(self._view.layer(layer).output_hook(sublayer), positions)

    def embeddings(self, positions: Positions = slice(None)) -> dict[str, Float[Tensor, "batch *pos d_model"]]:
        """What enters layer 0, by TransformerLens's labels: `embed`, and `pos_embed` where it is added by itself.

        Where those in the cache do not add up to it (XGLM's sinusoids have no hook, or the cache was made without
        them), all of it is `embed`.
        """
        entering = self.residual(0, "attn", positions)
        cached = [name for name in self._view.embedding_hooks if name in self._names]
        shape = self._shape("blocks.0.hook_resid_pre")
        if cached and all(self._shape(name) == shape for name in cached):
            parts = {name.removeprefix("hook_"): self._get(name, positions) for name in cached}
            difference = (sum(parts.values(), torch.zeros_like(entering)) - entering).abs().max()
            # Rounded once, in the model's dtype, when they were added.
            if difference <= 2 * torch.finfo(self._view.dtype).eps * entering.abs().max():
                return parts
        return {"embed": entering}

    def z(self, layer: int, positions: Positions = slice(None)) -> Float[Tensor, "batch *pos head d_head"]:
        """Pattern-weighted values of every head, before W_O."""
        return self._get(f"blocks.{layer}.attn.hook_z", positions)

    def pattern(self, layer: int, positions: Positions = slice(None)) -> Float[Tensor, "batch head *query key"]:
        """Attention weights at the query positions."""
        return self._get(f"blocks.{layer}.attn.hook_pattern", positions, dim=2)

    def values(self, layer: int) -> Float[Tensor, "batch key head d_head"]:
        """Values at every source position, one per query head (key/value heads repeated for their group).

        Raises:
            UnsupportedModelError: if the layer's values have a layout of their own.
            ValueError: if the cache holds only some positions.
        """
        values = self._get(f"blocks.{layer}.attn.hook_v", slice(None))
        keys = self._shape(f"blocks.{layer}.attn.hook_pattern")[-1]
        n_positions = values.shape[2 if self._view.layer(layer).latent else 1]
        if values.ndim == 4 and n_positions < keys:
            raise ValueError(
                f"the cache holds values at {n_positions} of {keys} source positions (made with pos_slice?); "
                "ask for by='head', or run_with_cache without pos_slice."
            )
        return self._view.layer(layer).values_by_source(values, keys)

    def coefficients(
        self, layer: int, n_neurons: int, positions: Positions = slice(None)
    ) -> Float[Tensor, "batch *pos neuron"]:
        """Coefficient m_n of every FFN neuron.

        Raises:
            UnsupportedModelError: if the layer caches another number of them than it has neurons.
        """
        m = self._get(f"blocks.{layer}.mlp.hook_post", positions)
        if m.shape[-1] != n_neurons:
            raise UnsupportedModelError(
                f"{self._view.name}: layer {layer} caches {m.shape[-1]} coefficients for {n_neurons} FFN neurons, so "
                "its FFN cannot be decomposed; whole sublayers still can, by trace.layers()."
            )
        return m

    def experts(self, layer: int, positions: Positions = slice(None)) -> Routed:
        """Where a mixture of experts sends the tokens, and its neurons' coefficients there.

        Raises:
            UnsupportedModelError: if the layer has no mixture of experts that can be read.
        """
        mixture = self._view.layer(layer).mixture()
        if mixture is None:
            raise UnsupportedModelError(f"{self._view.name}: layer {layer} has a dense FFN, no mixture of experts.")
        name = f"blocks.{layer}.mlp.hook_in"
        if self._rows is None:
            x = self._raw(name)  # routed with all others of the run, as in the run
            weights = mixture.weights(x.flatten(0, 1), self._view.compute_dtype).view(*x.shape[:2], -1)[:, positions]
            x = x[:, positions]
        else:
            x = self._rows.index(name, positions, 1)
            weights = mixture.weights(x.flatten(0, -2), self._view.compute_dtype).view(*x.shape[:-1], -1)
        return mixture.routed(self._here(x), self._here(weights))

    def post_scale(
        self, layer: int, sublayer: str, positions: Positions = slice(None)
    ) -> Float[Tensor, "batch *pos 1"] | None:
        """Scale of a sublayer's post-norm in this run; None where there is no post-norm."""
        name = self._view.layer(layer).post_scale_hook(sublayer)
        return self._get(name, positions) if name else None

    def final_scale(self, positions: Positions = slice(None)) -> Float[Tensor, "batch *pos 1"] | None:
        """Scale of the final norm in this run; None where there is no final norm."""
        return self._get("ln_final.hook_scale", positions) if self._view.readout.norm is not None else None

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Changes whenever an entry of the cache is written to or replaced."""
        if self._rows is not None:
            return self._rows.fingerprint()
        tensors = ((name, self._cache[name]) for name in sorted(self._names))
        return tuple((name, t.data_ptr(), version_of(t)) for name, t in tensors)

    def unembedded(self, position: int) -> Float[Tensor, "batch vocab"] | None:
        """What the unembedding gave at a position, before a multiplier or a soft cap; None where it is not cached."""
        return self._get("unembed.hook_out", position) if "unembed.hook_out" in self._names else None

    @property
    def batched(self) -> bool:
        """Whether the cache itself has a batch dimension."""
        return self._batched

    @property
    def batch_and_positions(self) -> tuple[int, int]:
        """Number of prompts and of positions in the cache."""
        batch, positions, *_ = self._shape("blocks.0.hook_resid_pre")
        return batch, positions

    def is_finite(self) -> bool:
        """Whether the residual stream holds numbers everywhere; an accelerator is waited for once."""
        if self._rows is not None:
            return not self._rows.infinite
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(self._view.n_layers)]
        names.append(f"blocks.{self._view.n_layers - 1}.hook_resid_post")
        # The least and the largest of each: NaN is both where there is any.
        ends = [end.to(self._view.device) for name in names for end in torch.aminmax(self._raw(name))]
        return bool(torch.isfinite(torch.stack(ends)).all())

    def first_infinite(self, layer: int) -> int | None:
        """The first position where the residual stream that enters a layer (or leaves the last) is no number."""
        last = layer == self._view.n_layers
        name = f"blocks.{layer - 1}.hook_resid_post" if last else f"blocks.{layer}.hook_resid_pre"
        if self._rows is not None:
            return self._rows.infinite.get(name)
        finite = torch.isfinite(self._raw(name))
        return None if finite.all() else int(torch.nonzero(~finite)[0, 1])

    def _raw(self, name: str) -> Tensor:
        self.require([name])
        tensor: Tensor = self._cache[name]
        return tensor if self._batched else tensor[None]

    def _get(self, name: str, positions: Positions, dim: int = 1) -> Tensor:
        if self._rows is not None:
            self.require([name])
            return self._here(self._rows.index(name, positions, dim))
        whole = self._raw(name)
        if isinstance(positions, slice) and positions == slice(None):
            return self._here(whole)
        return self._here(whole[(slice(None),) * dim + (positions,)])

    def _shape(self, name: str) -> torch.Size:
        if self._rows is None:
            return self._raw(name).shape
        self.require([name])
        return self._rows.shapes[name]

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self._view.device, dtype=self._view.compute_dtype)
