"""Spaces in the wrong place: most tokenizers keep a word's in the word, so that another token was asked about.

A target may lack its leading space, or the prompt have it at its end.
"""

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


def warn_of_misplaced_spaces(trace: Trace, wanted: Asked) -> None:
    """Warn of each space that is likely to be meant elsewhere."""
    for sentence in misplaced_spaces(trace, wanted):
        warnings.warn(sentence, LeadingSpaceWarning, stacklevel=3)


@no_autocast_no_grad
def misplaced_spaces(trace: Trace, wanted: Asked) -> list[str]:
    """A sentence for each space that is likely to be meant elsewhere."""
    return [*_at_the_end(trace), *_missing(trace, wanted)]


def _at_the_end(trace: Trace) -> list[str]:
    """Of the prompt, where a word of the target brings one along."""
    view = trace.run.view
    last, *words = decode_each(view, [int(trace.tokens[trace.position]), *trace.target_ids])
    spaced = [word for word in words if word.startswith(" ")]
    if last != " " or not spaced:
        return []
    return [
        f"the prompt ends with a space, and the target {spaced[0]!r} begins with one: a model rarely sees two; leave "
        "out the prompt's."
    ]


def _missing(trace: Trace, wanted: Asked) -> list[str]:
    """Of each word of the target that was likely meant to have one."""
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
