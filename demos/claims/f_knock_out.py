"""Claim (f): few value neurons, and the query neurons that activate them, carry the answer.

200 attention neurons and 100 FFN neurons of the highest log-probability increase, and 1,000 FFN neurons of the highest
query score for those 300, are set to zero; random ones as a control (of the small trained model, whose FFN layers have
2,048 neurons, a tenth of each number).

    attn_value, ffn_value, value, query      log p after less log p before, in nats
    random_value, random_query               the same for as many drawn at random
    value_prob, query_prob, random_..._prob  p after over p before

    python demos/claims/f_knock_out.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

import hashlib
import random

import numpy as np
import pandas as pd
from common import run

import tl_subvalues as tlsv


def drawn(trace: tlsv.Trace, attn: int, ffn: int) -> list[str]:
    """Neurons at random, other ones for each prompt and the same ones each time."""
    own = hashlib.sha256(str(trace.tokens.tolist()).encode()).hexdigest()
    draw, cfg = random.Random(own), trace.model.cfg
    found: set[str] = set()
    while len(found) < attn:
        layer, head = draw.randrange(cfg.n_layers), draw.randrange(cfg.n_heads)
        found.add(f"L{layer}H{head}D{draw.randrange(cfg.d_head)}@{draw.randrange(trace.position + 1)}")
    while len(found) < attn + ffn:
        found.add(f"L{draw.randrange(cfg.n_layers)}N{draw.randrange(cfg.d_mlp)}")
    return sorted(found)


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    n_attn, n_ffn, n_query = (20, 10, 100) if name == "taught" else (200, 100, 1000)
    attn, ffn = trace.attn_neurons(top=n_attn), trace.ffn_neurons(top=n_ffn)
    values = pd.concat([attn, ffn], ignore_index=True)
    sets = {
        "attn_value": attn,
        "ffn_value": ffn,
        "value": values,
        "query": trace.query_ffn_neurons(values, top=n_query),
        "random_value": drawn(trace, n_attn, n_ffn),
        "random_query": drawn(trace, 0, n_query),
    }
    found = {what: trace.ablate(labels)["log_prob_after"] - trace.log_prob for what, labels in sets.items()}
    shares = {f"{what}_prob": np.exp(found[what]) for what in ("value", "query", "random_value", "random_query")}
    return found | shares


if __name__ == "__main__":
    run("f_knock_out", work)
