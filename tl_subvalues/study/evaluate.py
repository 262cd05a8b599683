"""Does a ranking find the parts that matter? Over many facts, the top k of each ranking are ablated.

For every fact, the top k FFN neurons (attention neurons, heads) of each ranking are set to zero, at every position or
where their label says, and the target's rank,
probability and log-probability are read again (arXiv 2312.12141, section 4), and so is the difference where it is
measured against other words. All of a fact's ablations are rows of the
same prompt, run in batches.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import pandas as pd
import pyarrow as pa

from tl_subvalues.ablation.ablate import outcomes
from tl_subvalues.ablation.hooks import Mode
from tl_subvalues.labels import parse_label
from tl_subvalues.model_view import ModelView, view_of
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.progress import bar
from tl_subvalues.readout.readout import Scale, require_scale
from tl_subvalues.readout.targets import Measure
from tl_subvalues.study.facts import Fact, check_facts
from tl_subvalues.study.folder import into_folder
from tl_subvalues.study.jobs import Item, chosen_batch_size
from tl_subvalues.study.output import require_writable_table, write_table
from tl_subvalues.study.places import place_of
from tl_subvalues.study.ranked import RankedUnit, Ranking, Scores, warn_of_few
from tl_subvalues.study.rankings import chosen_rankings, own_rankings, rankings_named
from tl_subvalues.study.record import record_path, resumed, run_settings
from tl_subvalues.study.sources import read_rows, stream_rows
from tl_subvalues.study.summary import MEASURES, TAKEN, outcome_rows, summary
from tl_subvalues.study.traced import Tracer
from tl_subvalues.tracing.trace import Trace

KS = (10, 50, 300)
# Tokens in a batch of ablations: more do not run faster per row on two CPU cores.
_TOKENS = 256


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
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    on_error: str = "stop",
    out: Any = None,
    record: Any = None,
    batch_size: SupportsIndex | None = None,
    shard: tuple[int, int] | None = None,
    ray: bool | str = False,
    show_progress: bool | None = None,
) -> pd.DataFrame:
    """Compare rankings of FFN neurons, attention neurons or heads by what ablating their top k does to the target.

    Args:
        model: a TransformerLens model.
        facts: a DataFrame; the path of a CSV, Parquet, JSON (.json) or JSON lines (.jsonl) file; or a dataset of
            Hugging Face: itself, its folder, or its name ("NeelNanda/counterfact-tracing", with a split after a colon
            if need be). Columns prompt and target (text of one token, or its id; several words, for any of them, as a
            list, in a CSV file as JSON: [" Paris", " Rome"]), and if need be against, what the target is measured
            against: a word, several, or "rest". Every row has one or none has.
        rankings: names out of `tlsv.RANKINGS` or a dictionary of functions from a trace to the scores of its FFN
            neurons; None is all of `tlsv.RANKINGS` that rank `unit`. A random one is always among them. Most rank
            neurons that are then ablated at every position; "total_effect_gradient", "_frozen" and "_half", and
            "integrated_gradients_at_positions", rank each neuron at each position, and ablate it there.
        ks: how many to ablate; more than there are is all of them, with a warning.
        unit: whose rankings `None` stands for: "ffn_neuron", "attn_neuron" or "head".
        seed: of the random ranking and of the bootstrap.
        by: a column (or columns) of the facts: one set of rows for each of its values, in front.
        scale: as in `trace`, for the rankings that read the residual stream.
        prepend_bos: as in `trace`.
        columns: what prompt, target and against are called in the facts: {"prompt": "question", "target": "answer"}.
        layout: "counterfact" or "lama": where these collections have prompt and target; CounterFact's has target_new
            too, so that columns={"against": "target_new"} measures against it.
        on_error: "stop" refuses facts with bad rows, naming them by line; "skip" leaves those out and lists them in
            `attrs["skipped"]`.
        out: a .parquet or .csv file to write the table to; or a folder for Parquet parts, one row a fact, ranking and
            k: fact (the row's number among all), ranking, k, and what was measured. `merge` makes the table of them. A
            part that is there is not made again.
        record: a file that keeps what is done, fact by fact, so that the same call continues after a kill; None is
            `out` + ".record.jsonl", or no record without `out`. It stays when the work is done, and other settings
            are refused a record that is not theirs. A ranking of your own is known to it by its name only.
        batch_size: how many facts are worked through together; None is as many as 512 MB hold the distributions of, 24
            at most.
        shard: (i, n): only the rows i, i + n, i + 2n, … of the facts, i from 0, for the i-th of n machines; the others
            are read over. `out` is a folder.
        ray: True (a Ray that runs, else one on this machine) or the address of one: its workers, each with the model,
            share the parts (extra `ray`). `out` is a folder that all of them reach.
        show_progress: show a progress bar over the facts; None is in a terminal or a notebook.

    Returns:
        One row for each ranking and k: ranking, k, n_facts; mrr (mean reciprocal rank), prob and log_prob (nats) and,
        where the facts have an `against`, log_prob_diff (nats), means over the facts, each `_before` and `_after`; and
        for each of these `_low` and `_high`, the 95% percentile interval of a bootstrap over the facts. Of a shard,
        over its facts.

    Raises:
        ValueError: for bad facts, rankings, ks or files, and a record or parts of other settings.
        UnsupportedModelError: as `trace`, and for models without FFN neurons.
    """
    view = view_of(model)
    require_scale(scale)
    seed = whole_number(seed, "seed", least=0)
    numbers = require_ks(ks)
    size = chosen_batch_size(batch_size, view)
    names = _columns_to_group(by)
    place = place_of(out, record=record, shard=shard, ray=ray)
    how: dict[str, Any] = {"on_error": on_error, "prepend_bos": prepend_bos}

    def job_of(measure: Measure) -> Evaluating:
        return Evaluating(chosen_rankings(rankings, seed, measure, unit), numbers, seed, scale, names)

    if place is not None:
        rows = stream_rows(facts, columns, layout)
        return into_folder(model, job_of, names, rows, place, size, show_progress, **how)
    require_writable_table(out)
    path = record_path(record, out)
    checked = check_facts(view, read_rows(facts, columns, layout), **how)
    groups = _groups(checked.facts, names)
    job = job_of(checked.measure)
    items_of = job.on(view)

    def work(numbers: Sequence[int]) -> list[Item]:
        return items_of([checked.facts[number] for number in numbers])

    # How the facts are grouped changes none of their results.
    kept = {key: value for key, value in job.settings().items() if key != "by"}
    settings = run_settings(view, checked.facts, what="evaluate", **kept)
    found = []
    with bar("evaluate", len(checked.facts), "facts", show=show_progress) as shown:
        for group, item in zip(groups, resumed(path, settings, len(checked.facts), work, size), strict=True):
            found += [{**group, **row} for row in item["rows"]]
            shown.update()
    table = summary(pd.DataFrame(found), names, seed)
    table.attrs["skipped"] = checked.skipped
    if out is not None:
        write_table(table, out)
    return table


@dataclass(frozen=True)
class Evaluating:
    """The job of `evaluate`: the top of each ranking ablated, fact by fact."""

    rankings: Mapping[str, Ranking]
    ks: tuple[int, ...]
    seed: int
    scale: Scale
    by: tuple[str, ...] = ()
    what: str = "evaluate"

    def __reduce__(self) -> tuple[Any, ...]:
        """By their names but for the user's own: rankings are closures, which do not go to other processes as such."""
        names, own = tuple(self.rankings), own_rankings(self.rankings)
        return _made_again, (names, own, self.ks, self.seed, self.scale, self.by)

    def settings(self) -> dict[str, Any]:
        """What the outcomes depend on, and how they are summed."""
        return {
            "rankings": list(self.rankings),
            "ks": list(self.ks),
            "seed": self.seed,
            "scale": self.scale,
            "by": list(self.by),
        }

    def on(self, view: ModelView) -> Callable[[Sequence[Fact]], list[Item]]:
        """What ablates the tops of a batch of facts."""
        tracer = Tracer(view, self.scale)
        return lambda facts: outcomes_of(tracer, facts, self.rankings, self.ks)

    def rows(self, facts: Sequence[Fact], items: Sequence[Item]) -> pa.Table:
        """One row a fact, ranking and k."""
        return outcome_rows([fact.number for fact in facts], _groups(facts, self.by), items)


def _made_again(
    names: Sequence[str],
    own: Mapping[str, Ranking],
    ks: tuple[int, ...],
    seed: int,
    scale: Scale,
    by: tuple[str, ...],
) -> Evaluating:
    return Evaluating(rankings_named(names, seed, own), ks, seed, scale, by)


def outcomes_of(
    tracer: Tracer, facts: Sequence[Fact], rankings: Mapping[str, Ranking], ks: Sequence[int]
) -> list[Item]:
    """The outcomes of each fact of a batch, as rows."""
    traces = tracer.together(facts)
    named = {name: ranking.tops(traces, max(ks)) for name, ranking in rankings.items()}
    found = []
    for number, traced in enumerate(traces):
        tops = {name: each[number] for name, each in named.items()}
        warn_of_few(rankings, tops, max(ks))
        found.append({"rows": ablations(tracer.view, traced, tops, ks)})
    return found


def ablations(
    view: ModelView, traced: Trace, tops: Mapping[str, Sequence[str]], ks: Sequence[int]
) -> list[dict[str, Any]]:
    """One fact: what ablating the top of each ranking does.

    Returns:
        One row for each ranking and k: ranking, k, and log_prob and log_prob_diff (nats; the latter only where there is
        an `against`) and rank (1 is the top), each `_before` and `_after`.
    """
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


def _columns_to_group(by: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of the columns to group by."""
    if not (by is None or isinstance(by, str | Sequence)):
        raise ValueError(f"by is a column of the facts, or several, got {by!r}.")
    names = () if by is None else (by,) if isinstance(by, str) else tuple(by)
    taken = [name for name in names if name in TAKEN]
    if taken:
        raise ValueError(f"by={taken[0]!r}: the result has a column of that name itself; rename it in the facts.")
    return names


def _groups(facts: Sequence[Fact], names: Sequence[str]) -> list[dict[str, Any]]:
    """What each fact has in the columns to group by."""
    missing = [name for name in names if facts and name not in facts[0].columns]
    if missing:
        raise ValueError(f"the facts have no column {missing[0]!r} to group by; there are {list(facts[0].columns)}.")
    return [{name: fact.columns[name] for name in names} for fact in facts]
