"""Does a ranking find the parts that matter? Over many facts, the top k of each ranking are ablated.

For every fact, the top k FFN neurons (attention neurons, heads) of each ranking are set to zero, at every position or
where their label says, and the target's rank,
probability and log-probability are read again (arXiv 2312.12141, section 4), and so is the difference where it is
measured against other words. All of a fact's ablations are rows of the
same prompt, run in batches.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd

from tl_subvalues.ablation.ablate import outcomes
from tl_subvalues.ablation.hooks import Mode
from tl_subvalues.labels import parse_label
from tl_subvalues.model_view import ModelView, view_of
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.progress import bar
from tl_subvalues.readout.readout import Scale, require_scale
from tl_subvalues.study.facts import Fact, check_facts, read_rows
from tl_subvalues.study.output import require_writable_table, write_table
from tl_subvalues.study.ranked import RankedUnit, Ranking, Scores
from tl_subvalues.study.rankings import chosen_rankings
from tl_subvalues.study.record import record_path, resumed, run_settings
from tl_subvalues.study.traced import Tracer
from tl_subvalues.tracing.trace import Trace

KS = (10, 50, 300)
MEASURES = ("mrr", "prob", "log_prob", "log_prob_diff")
_WHEN = ("before", "after")
# Columns of the result, which a column of the facts to group by may not be called.
_TAKEN = {"ranking", "k", "n_facts"} | {
    f"{name}_{when}{end}" for name in (*MEASURES, "rank") for when in _WHEN for end in ("", "_low", "_high")
}
# Tokens in a batch of ablations: more do not run faster per row on two CPU cores.
_TOKENS = 256
_RESAMPLES = 1000


def evaluate(
    model: Any,
    facts: Any,
    *,
    rankings: Mapping[str, Scores] | Sequence[str] | None = None,
    ks: Iterable[SupportsIndex] = KS,
    unit: RankedUnit = "ffn_neuron",
    seed: SupportsIndex = 0,
    by: str | Sequence[str] | None = None,
    scale: Scale = "frozen",
    prepend_bos: bool | None = None,
    on_error: str = "stop",
    out: Any = None,
    record: Any = None,
    show_progress: bool | None = None,
) -> pd.DataFrame:
    """Compare rankings of FFN neurons, attention neurons or heads by what ablating their top k does to the target.

    Args:
        model: a TransformerLens model.
        facts: a DataFrame, or a CSV file's path, with columns prompt and target (text of one token, or its id; several
            words, for any of them, as a list, in a CSV file as JSON: [" Paris", " Rome"]), and if need be against, what
            the target is measured against: a word, several, or "rest". Every row has one or none has.
        rankings: names out of `tlsv.RANKINGS` or a dictionary of functions from a trace to the scores of its FFN
            neurons; None is all of `tlsv.RANKINGS` that rank `unit`. A random one is always among them. Most rank
            neurons that are then ablated at every position; "total_effect_gradient", "_frozen" and "_half" rank each
            neuron at each position, and ablate it there.
        ks: how many to ablate.
        unit: whose rankings `None` stands for: "ffn_neuron", "attn_neuron" or "head".
        seed: of the random ranking and of the bootstrap.
        by: a column (or columns) of the facts: one set of rows for each of its values, in front.
        scale: as in `trace`, for the rankings that read the residual stream.
        prepend_bos: as in `trace`.
        on_error: "stop" refuses facts with bad rows, naming them by line; "skip" leaves those out and lists them in
            `attrs["skipped"]`.
        out: a .parquet or .csv file to write the table to.
        record: a file that keeps what is done, fact by fact, so that the same call continues after a kill; None is
            `out` + ".record.jsonl", or no record without `out`. It stays when the work is done, and other settings
            are refused a record that is not theirs. A ranking of your own is known to it by its name only.
        show_progress: show a progress bar over the facts; None is in a terminal or a notebook.

    Returns:
        One row for each ranking and k: ranking, k, n_facts; mrr (mean reciprocal rank), prob and log_prob (nats) and,
        where the facts have an `against`, log_prob_diff (nats), means over the facts, each `_before` and `_after`; and
        for each of these `_low` and `_high`, the 95% percentile interval of a bootstrap over the facts.

    Raises:
        ValueError: for bad facts, rankings, ks or files, and a record of other settings.
        UnsupportedModelError: as `trace`, and for models without FFN neurons.
    """
    view = view_of(model)
    require_scale(scale)
    seed = whole_number(seed, "seed", least=0)
    numbers = require_ks(ks)
    require_writable_table(out)
    path = record_path(record, out)
    checked = check_facts(view, read_rows(facts), on_error=on_error, prepend_bos=prepend_bos)
    groups = _groups(checked.facts, by)
    chosen = chosen_rankings(rankings, seed, checked.measure, unit)
    tracer = Tracer(view, scale)

    def work(number: int) -> dict[str, Any]:
        fact = checked.facts[number]
        return {"rows": ablations(view, tracer(fact), chosen, numbers)}

    settings = run_settings(
        view, checked.facts, what="evaluate", rankings=list(chosen), ks=list(numbers), seed=seed, scale=scale
    )
    items = resumed(path, settings, len(checked.facts), work)
    rows = []
    with bar("evaluate", len(checked.facts), "facts", show=show_progress) as shown:
        for group, item in zip(groups, items, strict=True):
            rows += [{**group, **row} for row in item["rows"]]
            shown.update()
    table = summary(pd.DataFrame(rows), list(groups[0]), seed)
    table.attrs["skipped"] = checked.skipped
    if out is not None:
        write_table(table, out)
    return table


def ablations(
    view: ModelView, traced: Trace, rankings: Mapping[str, Ranking], ks: Sequence[int]
) -> list[dict[str, Any]]:
    """One fact: the top of each ranking, and what ablating it does.

    Returns:
        One row for each ranking and k: ranking, k, and log_prob and log_prob_diff (nats; the latter only where there is
        an `against`) and rank (1 is the top), each `_before` and `_after`.
    """
    tops = {name: ranking.top(traced, max(ks)) for name, ranking in rankings.items()}
    parsed = {label: parse_label(label) for top in tops.values() for label in top}
    sets = [(name, k, [parsed[label] for label in top[:k]]) for name, top in tops.items() for k in ks]
    batch = max(1, _TOKENS // len(traced.tokens))
    found = outcomes(view, traced, [[], *(components for _, _, components in sets)], Mode(), batch_size=batch)
    read = {name: found.values[name].tolist() for name in MEASURES if name in found.values and name != "prob"}
    read["rank"] = found.rank.tolist()
    before = {f"{measure}_before": values[0] for measure, values in read.items()}
    return [
        {"ranking": name, "k": k, **before, **{f"{measure}_after": values[row] for measure, values in read.items()}}
        for row, (name, k, _) in enumerate(sets, start=1)
    ]


def summary(rows: pd.DataFrame, by: Sequence[str], seed: int) -> pd.DataFrame:
    """Means over the facts and their bootstrap intervals, one row for each group, ranking and k.

    Args:
        rows: one row for each fact, ranking and k, as `ablations` has them, and the columns of `by`.
        by: columns to group by.
        seed: of the bootstrap.
    """
    for when in _WHEN:
        rows[f"mrr_{when}"] = 1.0 / rows[f"rank_{when}"]
        rows[f"prob_{when}"] = np.exp(rows[f"log_prob_{when}"])
    measures = [name for measure in MEASURES for when in _WHEN if (name := f"{measure}_{when}") in rows]
    summed = []
    for key, group in rows.groupby([*by, "ranking", "k"], sort=False, dropna=False):
        values = group[measures].to_numpy(dtype=np.float64)
        low, high = _interval(values, seed)
        row = dict(zip([*by, "ranking", "k"], key if isinstance(key, tuple) else (key,), strict=True))
        row["n_facts"] = len(group)
        row |= dict(zip(measures, values.mean(0).tolist(), strict=True))
        for name, a, b in zip(measures, low.tolist(), high.tolist(), strict=True):
            row |= {f"{name}_low": a, f"{name}_high": b}
        summed.append(row)
    return pd.DataFrame(summed)


def _interval(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile interval of the columns' means over resampled rows; the same rows for every ranking."""
    generator = np.random.default_rng(seed)
    n = len(values)
    means = np.stack([values[generator.integers(0, n, n)].mean(0) for _ in range(_RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def require_ks(ks: Any) -> tuple[int, ...]:
    """The numbers of neurons to ablate, in the order given.

    Raises:
        ValueError: unless they are positive, different numbers.
    """
    given = tuple(ks) if isinstance(ks, Iterable) and not isinstance(ks, str) else (ks,)
    if not given:
        raise ValueError("ks is empty; name at least one number of neurons to ablate.")
    numbers = tuple(whole_number(k, "each of ks") for k in given)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"ks are different numbers, got {ks!r}.")
    return numbers


def _groups(facts: Sequence[Fact], by: str | Sequence[str] | None) -> list[dict[str, Any]]:
    """What each fact has in the columns to group by."""
    if not (by is None or isinstance(by, str | Sequence)):
        raise ValueError(f"by is a column of the facts, or several, got {by!r}.")
    names = [] if by is None else [by] if isinstance(by, str) else list(by)
    missing = [name for name in names if name not in facts[0].columns]
    if missing:
        raise ValueError(f"the facts have no column {missing[0]!r} to group by; there are {list(facts[0].columns)}.")
    taken = [name for name in names if name in _TAKEN]
    if taken:
        raise ValueError(f"by={taken[0]!r}: the result has a column of that name itself; rename it in the facts.")
    return [{name: fact.columns[name] for name in names} for fact in facts]
