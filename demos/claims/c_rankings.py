"""Claim (c) at its widest: every ranking of FFN neurons, attention neurons and heads, and what else it breaks.

The first parts of each ranking are set to zero, at every position or at theirs, and the answer's log-probability is
read again. Parts that serve this answer alone leave other facts' answers as they are; parts that the model cannot do
without do not. So the same neurons and heads are set to zero in four other facts' prompts as well, where they are
ranked wherever they are.

    RANKING_K         log p after less log p before, in nats
    RANKING_others    how much log p four other facts' answers lose without the first ten neurons, or three heads, in
                      nats, their mean

    python demos/claims/c_rankings.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

from collections.abc import Sequence

import pandas as pd
import torch
from common import others, run

import tl_subvalues as tlsv

# Scores that are no one's claim: how long a value is, and how large its coefficient.
LEFT_OUT = ("norm", "coefficient")
RANKINGS = tuple(name for name in tlsv.RANKINGS if name not in LEFT_OUT)
KS = {"ffn_neuron": (10, 50), "attn_neuron": (10, 50), "head": (3, 10)}


def log_probs(model: object, facts: pd.DataFrame, labels: Sequence[str]) -> torch.Tensor:
    """Of several facts' answers, without some parts; in one batch, filled up on the right, which nothing looks at."""
    rows = [model.to_tokens(prompt)[0] for prompt in facts["prompt"]]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hooks = tlsv.ablation_hooks(model, labels) if labels else []
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    ends = torch.tensor([len(row) - 1 for row in rows])
    answers = torch.tensor([model.to_single_token(target) for target in facts["target"]])
    each = torch.arange(len(rows))
    return logits[each, ends].double().log_softmax(-1)[each, answers]


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    found, rest = {}, others(name, fact)
    before = log_probs(trace.model, rest, [])
    for ranking in RANKINGS:
        few, many = KS[tlsv.RANKINGS[ranking].of.unit]
        top = tlsv.RANKINGS[ranking].top(trace, many)
        for k in (few, many):
            found[f"{ranking}_{k}"] = trace.ablate(top[:k])["log_prob_after"] - trace.log_prob
        if not any("@" in label for label in top):
            found[f"{ranking}_others"] = float((before - log_probs(trace.model, rest, top[:few])).mean())
    return found


if __name__ == "__main__":
    run("c_rankings", work)
