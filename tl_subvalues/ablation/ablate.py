"""Components ablated in a forward pass: labels in, plain TransformerLens hooks out (arXiv 2312.12141, section 4).

    FFN neuron      its coefficient, at `mlp.hook_post`; of an expert, what it adds, at `mlp.hook_out`
    head            its z, at `attn.hook_z`
    attention neuron, head at a source position
                    its share of z, pattern[h, q, p] * v[h, p], taken out at `attn.hook_z` with that run's own
                    pattern and values (so that earlier ablations count), or at `attn.hook_v` where that is the same
    sublayer        what it adds to the residual stream, at `hook_attn_out` or `hook_mlp_out`

Everything after is computed by the model, a post-norm's scale included. Biases (b_O, b_out) stay, but for a whole
sublayer's.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, SupportsFloat, SupportsIndex, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.ablation.hooks import Hook, Mode, make_hooks, places
from tl_subvalues.ablation.reference import reference_means
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import Component, labels_in, parse_label
from tl_subvalues.model_view import ModelView, view_of
from tl_subvalues.numerics.softmax import log_softmax
from tl_subvalues.readout.targets import Target


def ablation_hooks(
    model: Any,
    labels: Any,
    *,
    mode: str | SupportsFloat = "zero",
    position: SupportsIndex | None = None,
    reference: Any = None,
) -> list[Hook]:
    """Hooks that ablate components, for `model.run_with_hooks(tokens, fwd_hooks=...)` or `model.hooks`.

    Beside hooks of your own: list those that edit values or the attention pattern before these, and those that edit z
    after them. Nothing is attached to the model, and nothing is kept between runs.

    Args:
        model: a TransformerLens model.
        labels: a label, a list of labels, or a table with a column `label`. FFN neurons (L24N1005), heads (L23H4),
            heads at a source position (L23H4@3), attention neurons at a source position (L23H4D38@3) or at all
            (L23H4D38), sublayers (24_attn_out, 24_mlp_out). Labels that say where a component is added (L11N1229@0,
            L11H2@1>3) are ablated there, the others at `position`. What is named twice, or as a part of a head that is
            named too, is ablated once.
        mode: "zero"; "mean", the component's mean over `reference`; or a number, its factor.
        position: the (query) position at which to ablate, negative from the end; None is everywhere.
        reference: for mode "mean": prompts (texts, lists of token ids or tensors of them, of any lengths). The mean
            is taken over all their positions; for a component at source position p, over the positions from p on.

    Returns:
        (hook name, function) pairs.

    Raises:
        ValueError: for a label that is none or not in the model, a bad mode or position, a missing reference.
        UnsupportedModelError: for an FFN without neurons that can be read, for a block without the hook, and from the
            hooks themselves, for a source position where the attention pattern cannot be seen in time.

    Example:
        >>> model = tlsv.load_model()
        >>> hooks = tlsv.ablation_hooks(model, ["L24N1005", "L23H4@3"])
        >>> logits = model.run_with_hooks(model.to_tokens("The capital of France is"), fwd_hooks=hooks)
        >>> model.to_string(logits[0, -1].argmax())
        ' the'
    """
    view = view_of(model)
    found, at = components(view, labels), require_position(position)
    return make_hooks(view, [found], ablation_mode(view, found, mode, reference), at)


def components(view: ModelView, labels: Any) -> list[Component]:
    """The components that labels name, each checked to be in the model.

    Raises:
        ValueError: for no labels, or one that is not in the model.
        UnsupportedModelError: if its sublayer has no such parts.
    """
    names = labels_in(labels)
    found = [parse_label(name) for name in names]
    for name, component in zip(names, found, strict=True):
        try:
            view.layer(component.layer).require(component)
        except UnsupportedModelError:
            raise
        except ValueError as error:
            raise ValueError(f"{name!r} is not in {view.name}: {str(error).rstrip('.')}.") from error
    return found


def ablation_mode(view: ModelView, found: Sequence[Component], mode: Any, reference: Any) -> Mode:
    """The `mode` argument, with the means that it needs.

    Raises:
        ValueError: for an unknown mode, and for a missing or needless reference.
    """
    if mode == "mean":
        if reference is None:
            raise ValueError("mode='mean' needs reference=, a list of prompts over which the means are taken.")
        if any(component.expert is not None for component in found):
            raise ValueError(
                "mode='mean' is not for neurons of experts, which few tokens reach; use 'zero' or a factor."
            )
        return Mode(means=reference_means(view, {place for one in found for place in places(one)}, reference))
    if reference is not None:
        raise ValueError("reference= is for mode='mean'; leave it out, or ask for that mode.")
    if mode == "zero":
        return Mode()
    if isinstance(mode, Real) and not isinstance(mode, bool) and math.isfinite(mode):
        return Mode(factor=float(mode))
    raise ValueError(f"mode is 'zero', 'mean' or a finite number, got {mode!r}.")


def require_position(position: Any) -> int | None:
    """A position as Python's int, or None for everywhere.

    Raises:
        ValueError: if it is neither.
    """
    if position is None:
        return None
    if isinstance(position, bool) or not hasattr(position, "__index__"):
        raise ValueError(f"position is an integer, or None for everywhere, got {position!r}.")
    return operator.index(position)


@runtime_checkable
class Prediction(Protocol):
    """A target predicted at a position of a prompt: what of a trace an ablation needs."""

    @property
    def tokens(self) -> Int[Tensor, " pos"]:
        """The prompt."""
        ...

    @property
    def target(self) -> Target:
        """The target."""
        ...

    @property
    def position(self) -> int:
        """Where it is predicted."""
        ...

    @property
    def value(self) -> float:
        """The measure that the traced run gave it, in nats."""
        ...


@dataclass(frozen=True)
class Outcomes:
    """What a target's prediction is in each row of a batch."""

    values: dict[str, Float[Tensor, " row"]]  # by the names that reports have: log_prob, prob, …
    rank: Int[Tensor, " row"]  # among all words; 1 is the top


@torch.no_grad()
def outcomes(
    view: ModelView,
    prediction: Prediction,
    rows: Sequence[Sequence[Component]],
    mode: Mode,
    position: int | None = None,
    batch_size: int = 16,
) -> Outcomes:
    """The prompt run once for every set of components, as batches of the same prompt.

    Raises:
        ValueError: if the ablated model's logits hold NaN.
    """
    found: list[dict[str, Tensor]] = []
    ranks = []
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        hooks = make_hooks(view, chosen, mode, position)
        tokens, positions = prediction.tokens.expand(len(chosen), -1), [prediction.position] * len(chosen)
        logits = view.logits(tokens, positions, hooks).to(view.compute_dtype)
        if not torch.isfinite(logits).any(-1).all() or logits.isnan().any():
            raise ValueError(f"with these components ablated, the logits of {view.name} hold NaN.")
        own = log_softmax(logits)
        found.append(
            {
                name: values.cpu()
                for target in prediction.target.shown
                for name, values in target.report(target.value(own)).items()
            }
        )
        ranks.append(prediction.target.rank(own).cpu())
    return Outcomes({name: torch.cat([one[name] for one in found]) for name in found[0]}, torch.cat(ranks))


def ablate(
    view: ModelView, prediction: Prediction, labels: Any, mode: Any, position: Any, reference: Any
) -> dict[str, float]:
    """A prompt run as it is and with components ablated, as a batch of two: the target before and after.

    Raises:
        ValueError: as `ablation_hooks`; and if the prompt no longer gives the traced log-probability.
    """
    found, at = components(view, labels), require_position(position)
    chosen = ablation_mode(view, found, mode, reference)
    both = outcomes(view, prediction, [[], found], chosen, at)
    # Another batch size sums in another order: 6e-6 nats was seen in float32, half precision rounds more.
    tolerance = 1e-3 if view.dtype in (torch.float32, torch.float64) else 0.1
    measure = prediction.target.measure
    now, traced = float(both.values[measure][0]), prediction.value
    if not abs(now - traced) <= tolerance * max(1.0, abs(traced)):
        raise ValueError(
            f"without ablation the prompt now gives a {measure} of {now:.4g}, but {traced:.4g} in the run that was "
            "traced: were there other hooks or other weights? Trace the prompt again, and ablate under the same hooks."
        )
    report: dict[str, float] = {}
    for name, values in {**both.values, "rank": both.rank}.items():
        report[f"{name}_before"], report[f"{name}_after"] = values.tolist()
    return report
