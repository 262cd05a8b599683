"""Claim (c) once more: the choices of c_settings.py that rank and ablate FFN neurons, each with each.

Ten FFN neurons of log-probability increase and ten of probability increase are ablated in sixteen ways, two of each:

    frozen, anew         increases with the final norm's scale held, or as the sum has it
    all, early           neurons of all layers, or without the last one's
    zero, mean           set to zero, or to their mean over four other facts' prompts
    everywhere, last     at every position, or at the trace's own alone

    SCALE_LAYERS_MODE_WHERE   log p without probability increase's neurons less log p without log-probability
                              increase's, in nats: positive where the paper's order comes out

    python demos/claims/c_combined.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

import pandas as pd
from c_settings import INCREASES, NEURONS, all_and_early
from common import others, run, without

import tl_subvalues as tlsv

SCALES, LAYERS, MODES, WHERE = ("frozen", "anew"), ("all", "early"), ("zero", "mean"), ("everywhere", "last")


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    traces = {"frozen": trace, "anew": tlsv.trace(trace.model, fact["prompt"], fact["target"], scale="recomputed")}
    sets = {}
    for scale in SCALES:
        for ranking in INCREASES:
            sets[scale, "all", ranking], sets[scale, "early", ranking] = all_and_early(traces[scale], ranking, NEURONS)
    means = {"mode": "mean", "reference": others(name, fact)["prompt"].tolist()}
    found = {}
    for mode in MODES:
        for where in WHERE:
            how = (means if mode == "mean" else {}) | ({"position": trace.position} if where == "last" else {})
            left = dict(zip(sets, without(trace, list(sets.values()), **how), strict=True))
            for scale in SCALES:
                for layers in LAYERS:
                    log_prob, prob = (left[scale, layers, ranking] for ranking in INCREASES)
                    found[f"{scale}_{layers}_{mode}_{where}"] = prob - log_prob
    return found


if __name__ == "__main__":
    run("c_combined", work)
