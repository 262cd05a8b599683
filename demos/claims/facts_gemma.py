"""Which of the facts does Gemma 3 270M answer? Writes facts_gemma.csv, those alone whose answer is one token.

python demos/claims/facts_gemma.py
"""

import sys

import pandas as pd
from common import DEMOS, HERE, load

sys.path.insert(0, str(DEMOS))
from check_facts import ranks


def main() -> None:
    """Read, check, write."""
    model = load("gemma")
    facts = pd.read_csv(DEMOS / "data" / "facts.csv")
    one = [model.to_tokens(target, prepend_bos=False).shape[1] == 1 for target in facts["target"]]
    facts = facts[one]
    rank = ranks(model, facts)
    facts = facts.assign(rank=rank, answered=[r == 1 for r in rank])
    facts.to_csv(HERE / "facts_gemma.csv", index=False, lineterminator="\n")
    print(f"{int(facts['answered'].sum())} of {len(facts)}")


if __name__ == "__main__":
    main()
