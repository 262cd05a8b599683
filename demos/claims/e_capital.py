"""Claim (e): <France, capital, Paris> and its like: attention at the subject writes what is related to it, the FFN what
kind of thing the answer is, activated by attention.

Over capitals of the countries in countries.csv. Words are a country, its language and its capital, as first tokens.
z(v)_t is the bs-value of word t less the mean over all words, in standard deviations.

    attn_related, ffn_related   mean z of the country's own words less mean z of the other countries', of the top head
                                at the subject, and of the top FFN neuron
    attn_kind, ffn_kind         mean z of the other capitals less mean z of the other countries' names and languages
    at_subject                  share of what heads at source positions raise that those at the subject's tokens do
    fed_by_attention            share of the top three FFN neurons' activation that attention layers' outputs make up
    fed_from_relation           share of it that heads reading the token "capital" make up (where it is there)

    python demos/claims/e_capital.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

import functools
import itertools
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import DEMOS, capitals_of, run

import tl_subvalues as tlsv
from tl_subvalues.decomposition.components import written


@functools.cache
def countries() -> pd.DataFrame:
    """The table, one country a row."""
    return pd.read_csv(DEMOS / "data" / "countries.csv")


def first_id(model: Any, name: str, word: str) -> int:
    """A word's first token, in the middle of a text."""
    text = word if name == "taught" else f" {word}"
    return int(model.to_tokens(text, prepend_bos=False)[0, 0])


@functools.cache
def words(model: Any, name: str) -> pd.DataFrame:
    """First tokens of all countries', languages' and capitals' names."""
    return countries()[["country", "language", "capital"]].map(lambda word: first_id(model, name, word))


def subject_positions(trace: tlsv.Trace, country: str) -> list[int]:
    """Positions of the tokens that the country's name is written in."""
    starts = np.cumsum([0, *(len(token) for token in trace.str_tokens)])
    text = "".join(trace.str_tokens)
    if country not in text:  # words of a dictionary, without their spaces
        return [number for number, token in enumerate(trace.str_tokens) if token == country]
    begin = text.index(country)
    spans = itertools.pairwise(starts)
    return [i for i, (start, stop) in enumerate(spans) if start < begin + len(country) and stop > begin]


def readings(trace: tlsv.Trace, v: torch.Tensor, ids: pd.DataFrame, own: int) -> tuple[float, float]:
    """How much a vector writes what is related to a country, and capitals as such."""
    bs = trace.readout.bs_values(v).double()
    z = ((bs - bs.mean()) / bs.std()).cpu().numpy()
    others = ids.drop(index=own)
    related = z[ids.loc[own].to_numpy()].mean() - z[others.to_numpy()].mean()
    return related, z[others["capital"]].mean() - z[others[["country", "language"]].to_numpy()].mean()


def fed(trace: tlsv.Trace) -> tuple[float, float]:
    """Shares of the top FFN neurons' activation: attention's, and that of heads reading the token "capital"."""
    whole, attention, relation = 0.0, 0.0, 0.0
    at = [number for number, token in enumerate(trace.str_tokens) if token.strip() == "capital"]
    for label in trace.ffn_neurons(top=3)["label"]:
        scores = trace.activations(label, by="head_position")
        sign = 1 if scores["score"].sum() >= 0 else -1
        heads = scores[scores["label"].str.fullmatch(r"L\d+H\d+@\d+")]
        whole += sign * scores["score"].sum()
        attention += sign * heads["score"].sum()
        relation += sign * heads.loc[heads["label"].str.rpartition("@")[2].astype(int).isin(at), "score"].sum()
    return attention / whole, relation / whole if at else np.nan


def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    ids, own = words(trace.model, name), countries().index[countries()["country"] == fact["country"]][0]
    subject = subject_positions(trace, fact["country"])
    heads = trace.head_positions(top=None)
    raising = heads["log_prob_increase"].clip(lower=0)
    best = heads[heads["position"].isin(subject)].iloc[0]
    neuron = trace.ffn_neurons(top=1).iloc[0]
    attn = readings(trace, written(trace.run, best["label"]), ids, own)
    ffn = readings(trace, neuron["coefficient"] * written(trace.run, neuron["label"]), ids, own)
    by_attention, from_relation = fed(trace)
    return {
        "attn_related": attn[0],
        "ffn_related": ffn[0],
        "attn_kind": attn[1],
        "ffn_kind": ffn[1],
        "at_subject": raising[heads["position"].isin(subject)].sum() / raising.sum(),
        "fed_by_attention": by_attention,
        "fed_from_relation": from_relation,
    }


if __name__ == "__main__":
    run("e_capital", work, capitals_of)
