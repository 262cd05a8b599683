"""Compare the rankings over facts that the embedded model answers: the tables of docs/evaluation.md.

    python demos/evaluate_facts.py [FACTS_PER_KIND]

Stopped at any moment, it goes on from where it was; `demos/data/evaluation.csv.record.jsonl` keeps what is done.
"""

import sys
from pathlib import Path

import pandas as pd

import tl_subvalues as tlsv

DATA = Path(__file__).parent / "data"
SEED = 0


def chosen_facts(per_kind: int) -> pd.DataFrame:
    """As many answered facts of every kind, drawn with a seed."""
    facts = pd.read_csv(DATA / "facts_checked.csv")
    answered = facts[facts["answered"]]
    return answered.groupby("kind", sort=False).sample(per_kind, random_state=SEED)


def markdown(table: pd.DataFrame, measure: str) -> str:
    """One row a ranking, one column a k: the mean after knocking out, and its interval."""
    cells = [
        f"{row[f'{measure}_after']:.2f} ({row[f'{measure}_after_low']:.2f} to {row[f'{measure}_after_high']:.2f})"
        for _, row in table.iterrows()
    ]
    wide = table.assign(cell=cells).pivot(index="ranking", columns="k", values="cell")
    lines = [["ranking", *(f"k = {k}" for k in wide.columns)], ["---"] * (1 + len(wide.columns))]
    lines += [[name, *wide.loc[name]] for name in table["ranking"].drop_duplicates()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Evaluate, once for all facts and once by kind (from the same record), and print the tables."""
    per_kind = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    facts, model = chosen_facts(per_kind), tlsv.load_model()
    out = DATA / "evaluation.csv"
    table = tlsv.evaluate(model, facts, out=out, show_progress=True)
    kinds = tlsv.evaluate(model, facts, by="kind", record=f"{out}.record.jsonl", out=DATA / "evaluation_by_kind.csv")
    print(f"{len(facts)} facts, before: {table.iloc[0][['mrr_before', 'prob_before', 'log_prob_before']].to_dict()}")
    for measure in ("log_prob", "prob", "mrr"):
        print(f"\n{measure}\n\n{markdown(table, measure)}")
    for kind, rows in kinds.groupby("kind", sort=False):
        before = rows["log_prob_before"].iloc[0]
        print(f"\n{kind}: log_prob before {before:.2f}\n\n{markdown(rows, 'log_prob')}")


if __name__ == "__main__":
    main()
