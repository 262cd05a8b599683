"""Tables of effects: of one trace, or of several of one model, whose gradients are made together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from tl_subvalues.show.tables import effect_table
from tl_subvalues.upstream.effects import Prompted, Wanted, effects_of
from tl_subvalues.upstream.sinks import sinks

if TYPE_CHECKING:
    from tl_subvalues.tracing.trace import Trace


def prompted(trace: "Trace") -> Prompted:
    """What the effects of a trace are of."""
    final = trace.run.activations.final_residual(trace.position)[0]
    return Prompted(trace.run, trace.tokens, trace.target, trace.readout.gradient(trace.target, final))


def effect_tables(traces: "Sequence[Trace]", wanted: Wanted, words: int | None = None) -> list[pd.DataFrame]:
    """`Trace.effects` of each.

    Raises:
        UnsupportedModelError: naming a layer that nothing can be led back through.
        ValueError: for words of embeddings, and where weights or activations have changed since a trace was made.
    """
    for trace in traces:
        trace.run.require_unchanged()
    if words is not None and wanted.unit == "embedding":
        raise ValueError("words= reads what components write; embeddings and bias terms have none, leave it out.")
    found = effects_of([prompted(trace) for trace in traces], wanted)
    return [
        trace.with_words(effect_table(effects, trace.str_tokens, sinks(trace.run)), words)
        for trace, effects in zip(traces, found, strict=True)
    ]
