"""Compare the rankings over facts that the embedded model answers: the tables of docs/evaluation.md.

    python demos/evaluate_facts.py [FACTS_PER_KIND]

Stopped at any moment, it goes on from where it was; `demos/data/evaluation.csv.record.jsonl` keeps what is done.
It writes, in `demos/data`, `evaluation.csv` (over all facts), `evaluation_by_kind.csv`, `evaluation_by_fact.csv` and
`evaluation_layers.csv` (where each ranking's top neurons are); `paired_differences.py` compares rankings from these.
"""

import sys
from pathlib import Path

import pandas as pd

import tl_subvalues as tlsv

DATA = Path(__file__).parent / "data"
SEED = 0
TOP = 50  # neurons of each ranking whose layers are counted
# What the page compares: neurons that are ablated at every position.
COMPARED = (
    "log_prob_increase",
    "prob_increase",
    "coefficient",
    "norm",
    "coefficient_times_norm",
    "direct_logit_attribution",
    "gradient_times_activation",
    "random",
)


def chosen_facts(per_kind: int) -> pd.DataFrame:
    """As many answered facts of every kind, drawn with a seed."""
    facts = pd.read_csv(DATA / "facts_checked.csv")
    answered = facts[facts["answered"]]
    return answered.groupby("kind", sort=False).sample(per_kind, random_state=SEED)


def markdown(table: pd.DataFrame, measure: str) -> str:
    """One row a ranking, one column a k: the mean after ablating, and its interval."""
    cells = [
        f"{row[f'{measure}_after']:.2f} ({row[f'{measure}_after_low']:.2f} to {row[f'{measure}_after_high']:.2f})"
        for _, row in table.iterrows()
    ]
    wide = table.assign(cell=cells).pivot(index="ranking", columns="k", values="cell")
    lines = [["ranking", *(f"k = {k}" for k in wide.columns)], ["---"] * (1 + len(wide.columns))]
    lines += [[name, *wide.loc[name]] for name in table["ranking"].drop_duplicates()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_fact(model: object, facts: pd.DataFrame, record: str) -> pd.DataFrame:
    """One row for each fact, ranking and k: groups of one fact each, without the intervals that these cannot have."""
    table = tlsv.evaluate(model, facts, rankings=COMPARED, by=["kind", "prompt", "target"], record=record)
    return table.drop(columns=["n_facts", *table.filter(regex="_(low|high)$")]).round(5)


def layer_shares(model: object, facts: pd.DataFrame) -> pd.DataFrame:
    """One row a ranking, one column a layer: the share of its top neurons that are there, mean over the facts."""
    layers = {name: [] for name in COMPARED}
    for prompt, target in zip(facts["prompt"], facts["target"], strict=True):
        trace = tlsv.trace(model, prompt, target)
        for name in COMPARED:
            layers[name] += [int(label[1:].split("N")[0]) for label in tlsv.RANKINGS[name].top(trace, TOP)]
    shares = {name: pd.Series(found).value_counts(normalize=True) for name, found in layers.items()}
    table = pd.DataFrame(shares).reindex(range(model.cfg.n_layers), fill_value=0).fillna(0)
    return table.T.rename_axis("ranking").round(4)


def main() -> None:
    """Evaluate over all facts, by kind and fact by fact (from one record), count layers, and print the tables."""
    per_kind = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    facts, model = chosen_facts(per_kind), tlsv.load_model()
    out = DATA / "evaluation.csv"
    record = f"{out}.record.jsonl"
    table = tlsv.evaluate(model, facts, rankings=COMPARED, out=out, show_progress=True)
    kinds = tlsv.evaluate(
        model, facts, rankings=COMPARED, by="kind", record=record, out=DATA / "evaluation_by_kind.csv"
    )
    by_fact(model, facts, record).to_csv(DATA / "evaluation_by_fact.csv", index=False, lineterminator="\n")
    layer_shares(model, facts).to_csv(DATA / "evaluation_layers.csv", lineterminator="\n")
    print(f"{len(facts)} facts, before: {table.iloc[0][['mrr_before', 'prob_before', 'log_prob_before']].to_dict()}")
    for measure in ("log_prob", "prob", "mrr"):
        print(f"\n{measure}\n\n{markdown(table, measure)}")
    for kind, rows in kinds.groupby("kind", sort=False):
        before = rows["log_prob_before"].iloc[0]
        print(f"\n{kind}: log_prob before {before:.2f}\n\n{markdown(rows, 'log_prob')}")


if __name__ == "__main__":
    main()
