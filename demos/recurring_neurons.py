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
KEPT = 50  # units of each sort in the table, by their sums
KEPT_OF_KIND = 5  # and those of each kind of fact that recur in no other
WORDS = 6
SHOWN = 12
KNOWN = "L24N1005"  # of France, capital, Paris
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


def counted(facts: pd.DataFrame, units: pd.DataFrame, found: dict[tuple[str, str], list[int]]) -> pd.DataFrame:
    """Adds how many facts of each kind have a unit in their top, and the kinds it recurs in (half of their facts)."""
    sizes = facts["kind"].value_counts(sort=False)
    kind_of = facts["kind"].tolist()
    counts = pd.DataFrame(0, index=units.index, columns=sizes.index)
    for index, unit, label in units[["unit", "label"]].itertuples():
        for number in found[unit, label]:
            counts.loc[index, kind_of[number]] += 1
    recurs = 2 * counts >= sizes
    only = recurs.idxmax(axis=1).where(recurs.sum(axis=1) == 1, "")
    return units.assign(kinds=recurs.sum(axis=1), only_kind=only, **{f"n_{kind}": counts[kind] for kind in counts})


def kept(units: pd.DataFrame) -> pd.DataFrame:
    """The units with the largest sums, and the first of those that recur in one kind only."""
    overall = units.groupby("unit", sort=False).head(KEPT)
    of_kind = units[units["only_kind"] != ""].groupby(["unit", "only_kind"], sort=False).head(KEPT_OF_KIND)
    return units.loc[overall.index.union(of_kind.index)].reset_index(drop=True)


def described(
    model: object, facts: pd.DataFrame, table: pd.DataFrame, found: dict[tuple[str, str], list[int]]
) -> pd.DataFrame:
    """Adds each unit's coefficient over the facts that have it in their top, and the words that it writes there."""
    places = {label: place(label) for label in table["label"]}
    hooks = {hook for hook, _ in places.values()}
    coefficients = defaultdict(list)
    for number, prompt in enumerate(facts["prompt"]):
        _, cache = model.run_with_cache(prompt, names_filter=lambda name: name in hooks)
        for unit, label in zip(table["unit"], table["label"], strict=True):
            if number in found[unit, label]:
                hook, index = places[label]
                coefficients[label].append(cache[hook][(0, -1, *index)].item())
    # Rows of W_out and W_O are the same in every trace; an attention neuron's at every source position.
    trace = tlsv.trace(model, facts["prompt"].iloc[0], facts["target"].iloc[0])
    named = [label if "N" in label else f"{label}@0" for label in table["label"]]
    vocabulary = trace.vocabulary(named, k=WORDS).groupby(["label", "side"])["token"].agg(list)
    values = [pd.Series(coefficients[label]) for label in table["label"]]
    sides = ["bottom" if value.sum() < 0 else "top" for value in values]
    return table.assign(
        mean_coefficient=[round(value.mean(), 3) for value in values],
        same_sign=[round(max((value < 0).mean(), (value > 0).mean()), 3) for value in values],
        words=[json.dumps(vocabulary[key], ensure_ascii=False) for key in zip(named, sides, strict=True)],
    ).round({"sum_increase": 4, "mean_rank": 2})


def markdown(table: pd.DataFrame) -> str:
    """Rows of the table as in docs/evaluation.md."""
    lines = [
        "| label | facts | kinds | sum of increases | mean rank | coefficient (same sign) | writes |",
        "| --- " * 7 + "|",
    ]
    for row in table.itertuples():
        words = " ".join(f"`{word}`" for word in json.loads(row.words)).replace("|", r"\|")
        kinds = row.only_kind or row.kinds
        lines.append(
            f"| {row.label} | {row.n_facts} | {kinds} | {row.sum_increase:.1f} | {row.mean_rank:.0f} "
            f"| {row.mean_coefficient:.1f} ({row.same_sign:.0%}) | {words} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Collect, keep the units with the largest sums, and say how often they recur and what they write."""
    facts, model = chosen_facts(int(sys.argv[1]) if len(sys.argv) > 1 else None), tlsv.load_model()
    record = DATA / "recurring.csv.record.jsonl"
    units = tlsv.collect(model, facts, top=TOP, record=record, show_progress=True)
    found = facts_of_units(record)
    units = counted(facts, units[units["unit"].isin(UNITS)], found)
    table = described(model, facts, kept(units), found)
    table.to_csv(DATA / "recurring.csv", index=False, lineterminator="\n")
    print(f"{len(facts)} facts: {facts['kind'].value_counts(sort=False).to_dict()}")
    for unit in UNITS:
        own, shown = units[units["unit"] == unit], table[table["unit"] == unit]
        often, only = int((2 * own["n_facts"] >= len(facts)).sum()), int((own["only_kind"] != "").sum())
        print(f"\n{unit}: {len(own)} in some top {TOP}, {often} in that of at least half of the facts,", end=" ")
        print(f"{only} that recur in one kind only\n")
        print(markdown(shown.head(SHOWN)))
        print(f"\n{unit}, of one kind only\n")
        print(markdown(shown[shown["only_kind"] != ""].groupby("only_kind", sort=False).head(2)))
    known = units[units["label"] == KNOWN].iloc[0]
    place_in_order = 1 + units[units["unit"] == "ffn_neuron"]["label"].tolist().index(KNOWN)
    print(f"\n{KNOWN}: number {place_in_order} by its sum; {known.to_dict()}")


if __name__ == "__main__":
    main()
