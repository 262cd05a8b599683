"""Traces of one model as live pages ask for them: a prompt, another target, a part that the document does not hold."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from tl_subvalues.decomposition.components import coefficients_of, component_of
from tl_subvalues.errors import SubvaluesWarning
from tl_subvalues.model_view import prompt_tokens, view_of
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.progress import step
from tl_subvalues.readout.asked import words_in
from tl_subvalues.saved.document import Document, cut
from tl_subvalues.saved.packing import plain
from tl_subvalues.saved.pages import WORDS
from tl_subvalues.tracing.finish import Made, document_of
from tl_subvalues.tracing.prompt import retargeted, trace
from tl_subvalues.tracing.trace import Trace

_NEURONS = ("ffn_neuron", "attn_neuron")


@dataclass(frozen=True)
class Tracer:
    """What a live page asks of one model; `tl_subvalues.live.session` says in which words.

    Attributes:
        model: that TransformerLens made.
        top: rows of each table of a document.
    """

    model: Any
    top: int = 50

    def tokens(self, prompt: str) -> list[int]:
        """The prompt as token ids, a BOS among them where the model has one by default."""
        return list(prompt_tokens(view_of(self.model), prompt, None).tolist())

    def trace(self, tokens: list[int], target: Any, against: Any) -> tuple[Trace, list[str]]:
        """A trace, and what was warned of.

        Args:
            tokens: the prompt.
            target: a word or its id, a list of them (as JSON too), or nothing for the model's own choice.
            against: the same, "rest", or nothing.

        Raises:
            ValueError: as `tlsv.trace`.
        """
        step("the model runs")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SubvaluesWarning)
            found = trace(self.model, tokens, words_in(target or None), against=words_in(against or None))
        return found, [str(one.message) for one in caught if issubclass(one.category, SubvaluesWarning)]

    def retarget(self, traced: Trace, target: Any) -> Trace:
        """Another target through the same run, against what the first was measured against.

        Raises:
            ValueError: for no such word, or one that it is measured against.
        """
        return retargeted(traced, target, traced.against_ids)

    def document(self, traced: Trace) -> Document:
        """What a page shows."""
        return cut(document_of(traced, self.top), self.top, WORDS)

    @no_autocast_no_grad
    def part(self, traced: Trace, label: str) -> Document:
        """What a document holds of a part, of any part of the run.

        Returns:
            label; parts (increase and coefficient), total_effects, ablations, words and activations, by label as in a
            document; and notes, why something is missing.

        Raises:
            ValueError: if the model has no such part.
        """
        traced.require_unchanged()
        component, made = component_of(traced.run, label), Made(traced, 1)
        here = component.at in (None, traced.position)
        own = made.tried("its increase", lambda: _own(traced, label), {}) if here else {}
        neuron = here and component.unit in _NEURONS
        return {
            "label": label,
            "parts": {label: plain(own)},
            "total_effects": plain(made.total_effects([label])),
            "words": {by: found for by, found in made.words([label]).items() if label in found},
            "activations": {label: made.activations(label)} if neuron else {},
            "ablations": plain(made.ablations([label])),
            "notes": made.notes,
        }


@torch.no_grad()
def _own(traced: Trace, label: str) -> dict[str, float]:
    """What adding it does at once, and of a neuron how strongly it is added."""
    values = traced.curve([label])[traced.measure]
    own = {"increase": float(values.iloc[1] - values.iloc[0])}
    if component_of(traced.run, label).unit in _NEURONS:
        own["coefficient"] = coefficients_of(traced.run, [label])[0]
    return own
