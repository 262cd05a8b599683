"""Claim (d): inner products with its subkey tell what activates an FFN neuron.

Of the three FFN neurons that raise the answer most: the eight heads and FFN layers with the largest scores are set to
zero one at a time at the last position, and the neuron's coefficient is read again. What is predicted is what the score
says (of a gated neuron, its gate held; of a ReLU, its pre-activation less the score, and nothing below zero).

    correlation, slope    of measured on predicted change, over the 24 pairs
    same_sign             share of pairs in which both have one sign
    top_measured          measured change of the coefficient over the predicted one, of each neuron's first part

    python demos/claims/d_activation.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

import re

import numpy as np
import pandas as pd
import torch
from common import run

import tl_subvalues as tlsv

PARTS = re.compile(r"L\d+H\d+|\d+_mlp_out")


def predicted(scores: pd.DataFrame, coefficient: float) -> pd.Series:
    """How the coefficient changes without each part."""
    if "gate" in scores:
        return -scores["score"]
    return (scores["score"].sum() - scores["score"]).clip(lower=0) - coefficient


@torch.no_grad()
def without(trace: tlsv.Trace, part: str, layer: int, neuron: int) -> float:
    """The neuron's coefficient in a run without the part at the last position."""
    seen: list[float] = []

    def read(value: torch.Tensor, hook: object) -> None:
        seen.append(float(value[0, trace.position, neuron]))

    hooks = tlsv.ablation_hooks(trace.model, [part], position=trace.position)
    hooks.append((trace.run.view.layer(layer).hook("mlp.hook_post"), read))
    trace.model.run_with_hooks(trace.tokens[None], fwd_hooks=hooks)
    return seen[-1]


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    pairs, firsts = [], []
    for row in trace.ffn_neurons(top=3).itertuples():
        scores = trace.activations(row.label, by="head")
        change = predicted(scores, row.coefficient)
        parts = scores[scores["label"].map(lambda label: bool(PARTS.fullmatch(label)))]
        parts = parts.iloc[parts["score"].abs().argsort(kind="stable")[::-1]].head(8)
        for number, (index, part) in enumerate(parts.iterrows()):
            measured = without(trace, part["label"], row.layer, row.neuron) - row.coefficient
            pairs.append((change[index], measured))
            if number == 0:
                firsts.append(measured / change[index])
    expected, measured = np.array(pairs).T
    return {
        "correlation": np.corrcoef(expected, measured)[0, 1],
        "slope": (expected @ measured) / (expected @ expected),
        "same_sign": (np.sign(expected) == np.sign(measured)).mean(),
        "top_measured": np.median(firsts),
    }


if __name__ == "__main__":
    run("d_activation", work)
