"""Where in a model is a fact stored? Subvalues of TransformerLens models, scored by the log-probability they add.

Method: Yu & Ananiadou, "Locating Factual Knowledge in Large Language Models" (arXiv 2312.12141).
"""

from tl_subvalues import baevski18
from tl_subvalues.ablation.ablate import ablation_hooks
from tl_subvalues.decomposition.stacks import attn_subvalues, ffn_subvalues
from tl_subvalues.errors import UnknownWordsWarning, UnsupportedModelError
from tl_subvalues.importance.increases import log_prob_increase, prob_increase
from tl_subvalues.loading.models import load_model
from tl_subvalues.readout.readout import Readout
from tl_subvalues.study.collect import collect
from tl_subvalues.study.evaluate import evaluate
from tl_subvalues.study.rankings import RANKINGS
from tl_subvalues.tracing.answer import trace_answer
from tl_subvalues.tracing.batch import TraceBatch, trace_batch
from tl_subvalues.tracing.prompt import trace
from tl_subvalues.tracing.trace import Trace

__all__ = [
    "RANKINGS",
    "Readout",
    "Trace",
    "TraceBatch",
    "UnknownWordsWarning",
    "UnsupportedModelError",
    "ablation_hooks",
    "attn_subvalues",
    "baevski18",
    "collect",
    "evaluate",
    "ffn_subvalues",
    "load_model",
    "log_prob_increase",
    "prob_increase",
    "trace",
    "trace_answer",
    "trace_batch",
]
