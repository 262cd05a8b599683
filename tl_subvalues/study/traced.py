"""One fact's trace, and what is to be said of its target."""

import warnings
from dataclasses import dataclass

from tl_subvalues.errors import LeadingSpaceWarning
from tl_subvalues.model_view import ModelView
from tl_subvalues.readout.readout import Scale
from tl_subvalues.study.facts import Fact
from tl_subvalues.tracing.prompt import trace_of_run
from tl_subvalues.tracing.spaces import missing_spaces
from tl_subvalues.tracing.trace import Trace


@dataclass
class Tracer:
    """Traces facts one after the other; of targets without their leading space it warns at the first, for all."""

    view: ModelView
    scale: Scale
    warned: bool = False

    def __call__(self, fact: Fact) -> Trace:
        """The trace of a fact, at its prompt's last position."""
        logits, cache = self.view.run_at(fact.tokens, len(fact.tokens) - 1)
        made = trace_of_run(self.view, fact.tokens, fact.asked, len(fact.tokens) - 1, self.scale, cache, logits)
        if not self.warned and (sentences := missing_spaces(made, fact.asked)):
            self.warned = True
            warnings.warn(f"{fact.where}: {sentences[0]} Others are not checked.", LeadingSpaceWarning, stacklevel=2)
        return made
