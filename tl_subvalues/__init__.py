"""Where in a model is a fact stored? Subvalues of TransformerLens models, scored by the log-probability they add.

Method: Yu & Ananiadou, "Locating Factual Knowledge in Large Language Models" (arXiv 2312.12141).

What this module names is the public surface, `import tl_subvalues as tlsv`; everything below it may change. A name is
imported when it is first asked for (PEP 562), so that the command's help does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tl_subvalues.version import __version__ as __version__

if TYPE_CHECKING:
    from tl_subvalues import baevski18 as baevski18
    from tl_subvalues.ablation.ablate import ablation_hooks as ablation_hooks
    from tl_subvalues.decomposition.stacks import attn_subvalues as attn_subvalues
    from tl_subvalues.decomposition.stacks import ffn_subvalues as ffn_subvalues
    from tl_subvalues.errors import LeadingSpaceWarning as LeadingSpaceWarning
    from tl_subvalues.errors import OtherModelWarning as OtherModelWarning
    from tl_subvalues.errors import SubvaluesWarning as SubvaluesWarning
    from tl_subvalues.errors import UnknownWordsWarning as UnknownWordsWarning
    from tl_subvalues.errors import UnsupportedModelError as UnsupportedModelError
    from tl_subvalues.importance.increases import log_prob_increase as log_prob_increase
    from tl_subvalues.importance.increases import prob_increase as prob_increase
    from tl_subvalues.loading.models import load_model as load_model
    from tl_subvalues.readout.readout import Readout as Readout
    from tl_subvalues.rows.find import find as find
    from tl_subvalues.rows.find import similar as similar
    from tl_subvalues.rows.index import write_index as write_index
    from tl_subvalues.saved.opened import open_trace as open_trace
    from tl_subvalues.show.plots import plot_evaluation as plot_evaluation
    from tl_subvalues.study.collect import collect as collect
    from tl_subvalues.study.evaluate import evaluate as evaluate
    from tl_subvalues.study.merge import merge as merge
    from tl_subvalues.study.rankings import RANKINGS as RANKINGS
    from tl_subvalues.tracing.answer import trace_answer as trace_answer
    from tl_subvalues.tracing.batch import TraceBatch as TraceBatch
    from tl_subvalues.tracing.batch import trace_batch as trace_batch
    from tl_subvalues.tracing.graph import Graph as Graph
    from tl_subvalues.tracing.prompt import trace as trace
    from tl_subvalues.tracing.trace import Trace as Trace

# Where each public name is; the imports above, which type checkers and editors read, say the same.
_HOMES = {
    "Graph": "tracing.graph",
    "LeadingSpaceWarning": "errors",
    "OtherModelWarning": "errors",
    "RANKINGS": "study.rankings",
    "Readout": "readout.readout",
    "SubvaluesWarning": "errors",
    "Trace": "tracing.trace",
    "TraceBatch": "tracing.batch",
    "UnknownWordsWarning": "errors",
    "UnsupportedModelError": "errors",
    "ablation_hooks": "ablation.ablate",
    "attn_subvalues": "decomposition.stacks",
    "baevski18": "baevski18",
    "collect": "study.collect",
    "evaluate": "study.evaluate",
    "ffn_subvalues": "decomposition.stacks",
    "find": "rows.find",
    "load_model": "loading.models",
    "log_prob_increase": "importance.increases",
    "merge": "study.merge",
    "open_trace": "saved.opened",
    "plot_evaluation": "show.plots",
    "prob_increase": "importance.increases",
    "similar": "rows.find",
    "trace": "tracing.prompt",
    "trace_answer": "tracing.answer",
    "trace_batch": "tracing.batch",
    "write_index": "rows.index",
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = module if name == _HOMES[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
