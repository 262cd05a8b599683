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

import pandas as pd
from common import log_probs, others, run, without

import tl_subvalues as tlsv

# Scores that are no one's claim: how long a value is, and how large its coefficient.
LEFT_OUT = ("norm", "coefficient")
RANKINGS = tuple(name for name in tlsv.RANKINGS if name not in LEFT_OUT)
KS = {"ffn_neuron": (10, 50), "attn_neuron": (10, 50), "head": (3, 10)}


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    rest = others(name, fact)
    before = log_probs(trace.model, rest, [])
    tops, broken = dict[str, list[str]](), dict[str, float]()
    for ranking in RANKINGS:
        few, many = KS[tlsv.RANKINGS[ranking].of.unit]
        top = tlsv.RANKINGS[ranking].top(trace, many)
        tops |= {f"{ranking}_{few}": top[:few], f"{ranking}_{many}": top}
        if not any("@" in label for label in top):
            broken[f"{ranking}_others"] = float((before - log_probs(trace.model, rest, top[:few])).mean())
    return dict(zip(tops, without(trace, list(tops.values())), strict=True)) | broken


if __name__ == "__main__":
    run("c_rankings", work)
