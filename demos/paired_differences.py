"""Rankings compared fact by fact, and the layers of their top neurons: the figures that docs/evaluation.md quotes.

    python demos/paired_differences.py

Reads `demos/data/evaluation_by_fact.csv` and `evaluation_layers.csv`, which `evaluate_facts.py` writes; no model runs.
"""

from pathlib import Path

import numpy as np
import pandas as pd

DATA = Path(__file__).parent / "data"
SEED = 0
RESAMPLES = 1000
PAIRS = [
    ("log_prob_increase", "prob_increase"),
    ("log_prob_increase", "coefficient"),
    ("log_prob_increase", "coefficient_times_norm"),
    ("log_prob_increase", "direct_logit_attribution"),
    ("log_prob_increase", "gradient_times_activation"),
    ("prob_increase", "gradient_times_activation"),
]


def differences(by_fact: pd.DataFrame, one: str, other: str, k: int) -> pd.Series:
    """Log-probability that ablating the top k of `one` leaves, less that of `other`, of each fact, in nats."""
    rows = by_fact[by_fact["k"] == k].pivot(
        index=["kind", "prompt", "target"], columns="ranking", values="log_prob_after"
    )
    # In the facts' own order, so that the bootstrap draws the same facts as `tlsv.evaluate` does.
    order = by_fact[["kind", "prompt", "target"]].drop_duplicates()
    return (rows[one] - rows[other]).reindex(pd.MultiIndex.from_frame(order))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of the mean, by a bootstrap over the facts."""
    generator, n = np.random.default_rng(SEED), len(values)
    means = values[generator.integers(0, n, (RESAMPLES, n))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return low, high


def paired(by_fact: pd.DataFrame) -> pd.DataFrame:
    """One row for each pair and k: the mean difference, its interval, and on how many facts `one` did more."""
    rows = []
    for one, other in PAIRS:
        for k in by_fact["k"].unique():
            values = differences(by_fact, one, other, k).to_numpy()
            low, high = interval(values)
            did_more = int((values < 0).sum())
            rows.append((one, other, k, values.mean(), low, high, did_more, len(values)))
    columns = ["one", "other", "k", "difference", "low", "high", "one_did_more", "n_facts"]
    return pd.DataFrame(rows, columns=columns)


def main() -> None:
    """Print both tables, and in how many kinds and at which k probability increase is ahead in the mean."""
    by_fact = pd.read_csv(DATA / "evaluation_by_fact.csv")
    print(f"{by_fact['prompt'].nunique()} prompts; log-probability left by `one` less that left by `other`, nats\n")
    print(paired(by_fact).to_string(index=False, float_format="{:.2f}".format))
    means = by_fact.groupby(["kind", "k", "ranking"], sort=False)["log_prob_after"].mean().unstack()
    ahead = means["prob_increase"] < means["log_prob_increase"]
    print(f"\nprobability increase ahead of log-probability increase in {ahead.sum()} of {len(ahead)} (kind, k)")
    shares = pd.read_csv(DATA / "evaluation_layers.csv", index_col="ranking")
    print("\nshare of the top neurons in the last layer, and in the last four\n")
    last = {"last": shares.iloc[:, -1], "last four": shares.iloc[:, -4:].sum(axis=1)}
    print(pd.DataFrame(last).to_string(float_format="{:.0%}".format))


if __name__ == "__main__":
    main()
