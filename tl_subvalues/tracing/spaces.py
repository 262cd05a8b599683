"""Targets that lack their leading space: most tokenizers keep it in the word, so that another token was asked about."""

import math
import warnings

from tl_subvalues.errors import LeadingSpaceWarning
from tl_subvalues.model_view import decode_each
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.asked import Asked
from tl_subvalues.tracing.trace import Trace

# How much likelier the word with its space is, from where on this is said. After "The capital of France is",
# SmolLM2-135M gives ' Paris' 0.77 and 'Paris' 5e-4.
_FAR_LIKELIER = 10.0


def warn_of_missing_spaces(trace: Trace, wanted: Asked) -> None:
    """Warn where a target's word was given without its space, and the word with it is far likelier."""
    for sentence in missing_spaces(trace, wanted):
        warnings.warn(sentence, LeadingSpaceWarning, stacklevel=3)


@no_autocast_no_grad
def missing_spaces(trace: Trace, wanted: Asked) -> list[str]:
    """A sentence for each word of the target that lacks a space which it was likely meant to have."""
    if not wanted.spaced:
        return []
    log_probs = trace.readout.log_probs(trace.run.activations.final_residual(trace.position)[0])
    found = []
    for pair in wanted.spaced:
        without, with_space = log_probs[list(pair)].tolist()
        if with_space - without > math.log(_FAR_LIKELIER) and pair[1] not in trace.target_ids:
            word, spaced = decode_each(trace.run.view, pair)
            found.append(
                f"the target {word!r} has no leading space, and {spaced!r} is far likelier here: p = "
                f"{math.exp(with_space):.2g}, not {math.exp(without):.2g}; pass {spaced!r} if that is what you mean."
            )
    return found
