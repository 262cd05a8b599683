"""Claim (c): log-probability increase finds what matters better than probability increase and other scores.

The top k FFN neurons of each ranking are set to zero, at every position (those of total effects at theirs), and the
answer's log-probability is read again. A ranking is good if it falls by much.

    RANKING_K    log p after less log p before, in nats
    ahead_K      log p left by probability increase's top k less that left by log-probability increase's: positive where
                 the paper's order comes out

    python demos/claims/c_scores.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

import pandas as pd
from common import run

import tl_subvalues as tlsv

KS = (10, 50)
RANKINGS = (
    "log_prob_increase",
    "prob_increase",
    "coefficient_times_norm",
    "direct_logit_attribution",
    "gradient_times_activation",
    "total_effect_gradient",
    "total_effect_frozen",
    "random",
)


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    found = {}
    for ranking in RANKINGS:
        top = tlsv.RANKINGS[ranking].top(trace, max(KS))
        for k in KS:
            after = trace.ablate(top[:k])["log_prob_after"]
            found[f"{ranking}_{k}"] = after - trace.log_prob
    for k in KS:
        found[f"ahead_{k}"] = found[f"prob_increase_{k}"] - found[f"log_prob_increase_{k}"]
    return found


if __name__ == "__main__":
    run("c_scores", work)
