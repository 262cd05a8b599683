"""Which neurons recur over the facts that the embedded model answers? The table of docs/evaluation.md.

    python demos/recurring_neurons.py [FACTS_PER_KIND]

Without a number, all answered facts. Stopped at any moment, it goes on from where it was;
`demos/data/recurring.csv.record.jsonl` keeps what is done.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import pandas as pd

import tl_subvalues as tlsv

DATA = Path(__file__).parent / "data"
SEED = 0
TOP = 300  # of each fact. Heads are left out: all 270 would be in every top.
KEPT = 50  # units of each sort in the table
WORDS = 6
SHOWN = 12
UNITS = ("ffn_neuron", "attn_neuron")


def chosen_facts(per_kind: int | None) -> pd.DataFrame:
    """The answered facts, all or as many of every kind, drawn with a seed."""
    facts = pd.read_csv(DATA / "facts_checked.csv")
    answered = facts[facts["answered"]].reset_index(drop=True)
    if per_kind is not None:
        answered = answered.groupby("kind", sort=False).sample(per_kind, random_state=SEED).reset_index(drop=True)
    return answered


def facts_of_units(record: Path) -> dict[tuple[str, str], list[int]]:
    """(unit, label) -> numbers of the facts that have it in their top, from what `collect` recorded."""
    with record.open() as file:
        assert json.loads(next(file))["schema"] == "tl-subvalues/record/1"
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for item in map(json.loads, file):
            for unit, labels in item["result"].items():
                for label in labels:
                    found[unit, label].append(item["item"])
    return found


def place(label: str) -> tuple[str, tuple[int, ...]]:
    """The hook that shows a neuron's coefficient, and its index there; an attention neuron's is summed over sources."""
    if "N" in label:
        layer, neuron = label[1:].split("N")
        return f"blocks.{layer}.mlp.hook_post", (int(neuron),)
    layer, rest = label[1:].split("H")
    head, dim = rest.split("D")
    return f"blocks.{layer}.attn.hook_z", (int(head), int(dim))


def described(model: object, facts: pd.DataFrame, table: pd.DataFrame, found: dict) -> pd.DataFrame:
    """Adds facts and kinds that have each unit in their top, its coefficients there, and the words that it writes."""
    per_kind = facts["kind"].value_counts(sort=False)
    places = {label: place(label) for label in table["label"]}
    hooks = {hook for hook, _ in places.values()}
    coefficients = defaultdict(list)
    for number, prompt in enumerate(facts["prompt"]):
        _, cache = model.run_with_cache(prompt, names_filter=lambda name: name in hooks)
        for row in table.itertuples():
            if number in found[row.unit, row.label]:
                hook, index = places[row.label]
                coefficients[row.unit, row.label].append(cache[hook][(0, -1, *index)].item())
    # Rows of W_out and W_O are the same in every trace; an attention neuron's at every source position.
    trace = tlsv.trace(model, facts["prompt"].iloc[0], facts["target"].iloc[0])
    named = [row.label if row.unit == "ffn_neuron" else f"{row.label}@0" for row in table.itertuples()]
    vocabulary = trace.vocabulary(named, k=WORDS).groupby(["label", "side"])["token"].agg(list)
    rows = []
    for row, name in zip(table.itertuples(), named, strict=True):
        kinds = facts["kind"].iloc[found[row.unit, row.label]].value_counts().reindex(per_kind.index, fill_value=0)
        values = pd.Series(coefficients[row.unit, row.label])
        side = "bottom" if values.sum() < 0 else "top"
        rows.append(
            {
                "kinds": int((2 * kinds >= per_kind).sum()),
                "same_sign": round(max((values < 0).mean(), (values > 0).mean()), 3),
                "mean_coefficient": round(values.mean(), 3),
                "words": json.dumps(vocabulary[name, side], ensure_ascii=False),
                **{f"n_{kind}": int(n) for kind, n in kinds.items()},
            }
        )
    return pd.concat([table.round({"sum_increase": 4, "mean_rank": 2}), pd.DataFrame(rows)], axis=1)


def markdown(table: pd.DataFrame) -> str:
    """The first rows of a table, as in docs/evaluation.md."""
    lines = ["| label | facts | kinds | sum of increases | mean rank | coefficient | writes |", "| --- " * 7 + "|"]
    for row in table.itertuples():
        words = " ".join(f"`{word}`" for word in json.loads(row.words))
        lines.append(
            f"| {row.label} | {row.n_facts} | {row.kinds} | {row.sum_increase:.1f} | {row.mean_rank:.0f} "
            f"| {row.mean_coefficient:.1f} | {words} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Collect, keep the units with the largest sums, and say how often they recur and what they write."""
    facts, model = chosen_facts(int(sys.argv[1]) if len(sys.argv) > 1 else None), tlsv.load_model()
    record = DATA / "recurring.csv.record.jsonl"
    units = tlsv.collect(model, facts, top=TOP, record=record, show_progress=True)
    units = units[units["unit"].isin(UNITS)]
    found = facts_of_units(record)
    sizes = units["unit"].value_counts()
    kept = units.groupby("unit", sort=False).head(KEPT).reset_index(drop=True)
    table = described(model, facts, kept, found)
    table.to_csv(DATA / "recurring.csv", index=False, lineterminator="\n")
    print(f"{len(facts)} facts: {facts['kind'].value_counts(sort=False).to_dict()}")
    for unit in UNITS:
        often = int((2 * units.loc[units["unit"] == unit, "n_facts"] >= len(facts)).sum())
        print(f"\n{unit}: {sizes[unit]} in some top {TOP}, {often} in that of at least half of the facts\n")
        print(markdown(table[table["unit"] == unit].head(SHOWN)))
    for label in ("L24N1005",):
        numbers = found["ffn_neuron", label]
        print(
            f"\n{label} is in the top of {len(numbers)} facts: {facts['kind'].iloc[numbers].value_counts().to_dict()}"
        )


if __name__ == "__main__":
    main()
