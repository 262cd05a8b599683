"""Which facts does the embedded model know? Adds a column `answered`: whether the target is its first choice.

python demos/check_facts.py [FACTS.csv [CHECKED.csv]]
"""

import sys
from pathlib import Path

import pandas as pd
import torch

import tl_subvalues as tlsv

DATA = Path(__file__).parent / "data"


def ranks(model: object, facts: pd.DataFrame) -> list[int]:
    """Rank of each target after its prompt, 1 is the top; prompts of one length are run together."""
    prompts = [model.to_tokens(prompt)[0] for prompt in facts["prompt"]]
    targets = [model.to_single_token(target) for target in facts["target"]]
    found = [0] * len(facts)
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    for numbers in by_length.values():
        for start in range(0, len(numbers), 16):
            batch = numbers[start : start + 16]
            with torch.no_grad():
                logits = model(torch.stack([prompts[number] for number in batch]))[:, -1]
            for number, row in zip(batch, logits, strict=True):
                found[number] = 1 + int((row > row[targets[number]]).sum())
    return found


def main() -> None:
    """Read, check, write, and say how many of each kind are answered."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "facts.csv"
    checked = Path(sys.argv[2]) if len(sys.argv) > 2 else DATA / "facts_checked.csv"
    facts = pd.read_csv(source)
    rank = ranks(tlsv.load_model(), facts)
    facts = facts.assign(rank=rank, answered=[r == 1 for r in rank])
    facts.to_csv(checked, index=False, lineterminator="\n")
    counts = facts.groupby("kind", sort=False)["answered"].agg(["sum", "size"])
    print(counts.rename(columns={"sum": "answered", "size": "facts"}).to_string())
    print(f"together {int(facts['answered'].sum())} of {len(facts)}, written to {checked}")


if __name__ == "__main__":
    main()
