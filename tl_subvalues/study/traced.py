"""One fact's trace, and what is to be said of its target."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from tl_subvalues.errors import LeadingSpaceWarning
from tl_subvalues.model_view import ModelView
from tl_subvalues.readout.readout import Scale
from tl_subvalues.study.facts import Fact
from tl_subvalues.tracing.prompt import Question, traces_of_prompts
from tl_subvalues.tracing.spaces import misplaced_spaces
from tl_subvalues.tracing.trace import Trace


@dataclass
class Tracer:
    """Traces facts, one by one or in batches; of targets without their leading space it warns at the first, for all."""

    view: ModelView
    scale: Scale
    warned: bool = False

    def __call__(self, fact: Fact) -> Trace:
        """The trace of a fact, at its prompt's last position."""
        return self.together([fact])[0]

    def together(self, facts: Sequence[Fact]) -> list[Trace]:
        """Traces of a batch of facts, whose prompts are run in one pass."""
        questions = [Question(fact.tokens, fact.asked, len(fact.tokens) - 1) for fact in facts]
        traces = traces_of_prompts(self.view, questions, self.scale)
        for fact, made in zip(facts, traces, strict=True):
            if self.warned:
                break
            if sentences := misplaced_spaces(made, fact.asked):
                self.warned = True
                said = f"{fact.where}: {sentences[0]} Others are not checked."
                warnings.warn(said, LeadingSpaceWarning, stacklevel=2)
        return traces
