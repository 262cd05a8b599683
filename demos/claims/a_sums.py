"""Claim (a): bs-values of summed vectors add up, so that the top words of a subvalue gain probability.

For the 5 heads at a source position and the 5 FFN neurons that raise the answer most: the subvalue v is added to the
residual stream x that its sublayer reads, and the log-probabilities of all words are compared.

    additive_error      within one softmax, log p(t | x + v) - log p(t | x) - bs(v)_t is the same for all words t:
                        largest spread of it, in nats, final norm's scale held
    top_words_up        share of v's ten words of the highest bs-value whose probability rises, scale held
    top_words_up_true   the same with the final norm's scale taken anew
    top_words_gain      their mean gain of log-probability, in nats, scale held
    random_words_up     share of ten words drawn at random whose probability rises, scale held

    python demos/claims/a_sums.py [--models ...] [--facts N] [--minutes M] [--check N]
"""

import pandas as pd
import torch
from common import SEED, run

import tl_subvalues as tlsv
from tl_subvalues.decomposition.components import written

WORDS = 10


def subvalues(trace: tlsv.Trace) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of residual stream and subvalue."""
    heads, neurons = trace.head_positions(top=5), trace.ffn_neurons(top=5)
    pairs = [(trace.run.site(row.layer, "attn").residual, written(trace.run, row.label)) for row in heads.itertuples()]
    for row in neurons.itertuples():
        pairs.append((trace.run.site(row.layer, "mlp").residual, row.coefficient * written(trace.run, row.label)))
    return pairs


@torch.no_grad()
def work(name: str, trace: tlsv.Trace, fact: pd.Series) -> dict[str, float]:
    """The numbers of one fact."""
    true = tlsv.Readout(trace.model, scale="recomputed")
    bands = torch.tensor([trace.readout.band(word) for word in range(trace.readout.d_vocab)])
    drawn = torch.randperm(len(bands), generator=torch.Generator().manual_seed(SEED))[:WORDS]
    rows = []
    for x, v in subvalues(trace):
        both = torch.stack([x, x + v])
        before, after = trace.readout.log_probs(both).double()
        change, bs = after - before, trace.readout.bs_values(v).double()
        rest = change - bs
        spread = max(float(rest[bands == band].max() - rest[bands == band].min()) for band in bands.unique())
        top = bs.topk(WORDS).indices
        before, after = true.log_probs(both)
        up = [(change[top] > 0), (after - before)[top] > 0, change[drawn] > 0]
        rows.append([spread, up[0].float().mean(), up[1].float().mean(), change[top].mean(), up[2].float().mean()])
    found = torch.tensor(rows)
    means = found.mean(0).tolist()
    names = ["top_words_up", "top_words_up_true", "top_words_gain", "random_words_up"]
    return {"additive_error": float(found[:, 0].max()), **dict(zip(names, means[1:], strict=True))}


if __name__ == "__main__":
    run("a_sums", work)
