"""Facts for the tiny tokenizer: prompts and targets drawn at random, and settings that keep a run over them short."""

from typing import Any

import pandas as pd
import torch

SMALL: dict[str, Any] = {"rankings": ["log_prob_increase", "coefficient"], "ks": (3, 10), "prepend_bos": False}


def make_facts(count: int, seed: int = 5) -> pd.DataFrame:
    """Prompts of three to six words (the tokenizer would find its special words in w0…, w1… and w2…)."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(30, 61, (count, 7), generator=generator).tolist()
    return pd.DataFrame(
        {
            "kind": ["even" if i % 2 == 0 else "odd" for i in range(count)],
            "prompt": [" ".join(f"w{w}" for w in row[: 3 + i % 4]) for i, row in enumerate(words)],
            "target": [f"w{row[-1]}" for row in words],
        }
    )
