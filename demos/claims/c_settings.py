"""Claim (c) again: does the way of ablating decide which score comes out ahead?

What zeroing the ten FFN neurons of a ranking does to the answer's log-probability, at every position and with the final
norm's scale held, is compared with the same under one other choice at a time:

    base           as in c_scores.py
    mean           neurons are set to their mean over other facts' prompts instead of zero
    last           at the trace's own position alone
    recomputed     increases are taken with the final norm's scale as the sum has it
    early          neurons of the last layer are left out
    attn_neurons   ten attention neurons, each at its source position
    heads          three heads

    CHOICE_RANKING   log p after less log p before, in nats
    CHOICE_ahead     what probability increase's leave less what log-probability increase's do: positive where the
                     paper's order comes out
    damage_RANKING   how much log p other facts' answers lose without the base's neurons, in nats, mean over four

    python demos/claims/c_settings.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

from collections.abc import Mapping, Sequence

import pandas as pd
from common import log_probs, others, run, without

import tl_subvalues as tlsv

NEURONS, HEADS = 10, 3
INCREASES = ("log_prob_increase", "prob_increase")
RANKINGS = (*INCREASES, "gradient_times_activation", "random")
# How many of a unit, what its rankings begin with, and which of them is the total effect by gradient.
OF_UNIT = {
    "attn_neurons": (NEURONS, "attn_neuron_", "attn_neuron_total_effect_gradient"),
    "heads": (HEADS, "head_", "head_total_effect_gradient"),
}


def all_and_early(trace: tlsv.Trace, ranking: str, k: int) -> tuple[list[str], list[str]]:
    """The first k of a ranking, and the first k that are not in the last layer."""
    last, asked = f"L{trace.model.cfg.n_layers - 1}N", 16 * k
    while True:
        found = tlsv.RANKINGS[ranking].top(trace, asked)
        early = [label for label in found if not label.startswith(last)]
        if len(early) >= k or len(found) < asked:
            return found[:k], early[:k]
        asked *= 4


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    moving = tlsv.trace(trace.model, fact["prompt"], fact["target"], scale="recomputed")
    tops = {ranking: tlsv.RANKINGS[ranking].top(trace, NEURONS) for ranking in RANKINGS}
    rest = others(name, fact)

    def left(sets: Mapping[str, Sequence[str]], **how: object) -> dict[str, float]:
        return dict(zip(sets, without(trace, list(sets.values()), **how), strict=True))

    choices = {
        "base": left(tops),
        "mean": left(tops, mode="mean", reference=rest["prompt"].tolist()),
        "last": left(tops, position=trace.position),
        "recomputed": left({ranking: tlsv.RANKINGS[ranking].top(moving, NEURONS) for ranking in INCREASES}),
        "early": left({ranking: all_and_early(trace, ranking, NEURONS)[1] for ranking in RANKINGS[:3]}),
    }
    for choice, (k, prefix, total) in OF_UNIT.items():
        named = {ranking: f"{prefix}{ranking}" for ranking in (*INCREASES, "random")} | {"total_effect": total}
        choices[choice] = left({ranking: tlsv.RANKINGS[own].top(trace, k) for ranking, own in named.items()})
    found = {}
    for choice, values in choices.items():
        found |= {f"{choice}_{ranking}": value for ranking, value in values.items()}
        found[f"{choice}_ahead"] = values["prob_increase"] - values["log_prob_increase"]
    before = log_probs(trace.model, rest, [])
    for ranking, labels in tops.items():
        found[f"damage_{ranking}"] = float((before - log_probs(trace.model, rest, labels)).mean())
    return found


if __name__ == "__main__":
    run("c_settings", work)
