"""Claim (b): the curve of log p is near a line and rises all along, where that of p does not.

Sublayer outputs are added one by one in order of computation, from the embedding to the output (`layers_`); and the top
100 FFN neurons, highest increase first, to the residual stream that the earliest of them reads (`neurons_`).

    ..._r2_log_prob, ..._r2_prob            R² of a line through the curve
    ..._rising_log_prob, ..._rising_prob    share of its steps that rise

(p rises where log p does, so the two shares of one curve are one number; both are given for completeness.)

    python demos/claims/b_curves.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

import numpy as np
import pandas as pd
from common import run

import tl_subvalues as tlsv


def r2(values: np.ndarray) -> float:
    """Share of the variance along a curve that a line explains."""
    return float(np.corrcoef(np.arange(len(values)), values)[0, 1] ** 2)


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    found = {}
    for what, table in (("layers", trace.layers()), ("neurons", trace.ffn_neurons(top=100))):
        curve = trace.curve(table)
        for measure in ("log_prob", "prob"):
            values = curve[measure].to_numpy(dtype=float)
            found[f"{what}_r2_{measure}"] = r2(values)
            found[f"{what}_rising_{measure}"] = float((np.diff(values) > 0).mean())
    return found


if __name__ == "__main__":
    run("b_curves", work)
