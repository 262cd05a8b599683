"""What the experiments share: models, facts, a record that resumes, a CSV with one row for each fact, intervals."""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import tl_subvalues as tlsv
from tl_subvalues.ablation import ablate
from tl_subvalues.model_view import view_of

HERE = Path(__file__).parent
DEMOS = HERE.parent
SEED = 0
RESAMPLES = 1000
OTHERS = 4  # facts that a fact is compared with
MODELS = ("smollm2", "gemma", "taught")
KEY = ["model", "kind", "prompt", "target"]
# Any fact's numbers may differ by this when they are computed again, on another machine too; a share of rising steps
# by one step in a hundred, which is as small as rounding.
AGAIN, RISING = 2e-3, 0.011

Work = Callable[[str, tlsv.Trace, pd.Series], dict[str, float]]


def load(name: str) -> Any:
    """One of the three models.

    Raises:
        SystemExit: if Gemma has not been fetched.
    """
    if name == "smollm2":
        return tlsv.load_model(device="cpu")
    if name == "taught":
        return tlsv.baevski18.load(DEMOS / "taught" / "converted", device="cpu")
    sys.path.insert(0, str(DEMOS))
    from gemma_3_270m import default_file

    if not default_file().is_file():
        raise SystemExit("Gemma is not there: python demos/gemma_3_270m.py fetches it, or name other --models.")
    return tlsv.load_model(str(default_file()), device="cpu")


def facts_of(name: str) -> pd.DataFrame:
    """The facts that a model answers, shuffled within each kind and dealt in turn, so that the first N are balanced."""
    if name == "taught":
        facts = pd.read_csv(DEMOS / "taught" / "facts.csv")
    else:
        facts = pd.read_csv(HERE / "facts_gemma.csv" if name == "gemma" else DEMOS / "data" / "facts_checked.csv")
    facts = facts[facts["answered"]].sample(frac=1, random_state=SEED)
    turn = facts.groupby("kind", sort=False).cumcount()
    return facts.assign(turn=turn).sort_values(["turn", "kind"], kind="stable").reset_index(drop=True)


@functools.cache
def dealt(name: str) -> pd.DataFrame:
    """A model's answered facts, in their order."""
    return facts_of(name)


def others(name: str, fact: pd.Series) -> pd.DataFrame:
    """The first facts of the deal that ask for another answer: what must not be damaged, and what means are over."""
    facts = dealt(name)
    return facts[(facts["target"] != fact["target"]) & (facts["prompt"] != fact["prompt"])].head(OTHERS)


def without(trace: tlsv.Trace, sets: Sequence[Sequence[str]], **how: Any) -> list[float]:
    """What a fact's answer loses without each of several sets of parts, in batches: log p after less the trace's."""
    view, mode, reference = trace.run.view, how.get("mode", "zero"), how.get("reference")
    rows = [ablate.components(view, labels) for labels in sets]
    chosen = ablate.ablation_mode(view, [part for row in rows for part in row], mode, reference)
    found = ablate.outcomes(view, trace, rows, chosen, how.get("position"))
    return [value - trace.log_prob for value in found.values["log_prob"].tolist()]


def log_probs(model: Any, facts: pd.DataFrame, labels: Sequence[str]) -> torch.Tensor:
    """Of several facts' answers, without some parts; in one batch, filled up on the right, which nothing looks at."""
    rows = [model.to_tokens(prompt)[0] for prompt in facts["prompt"]]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hooks = tlsv.ablation_hooks(model, labels) if labels else []
    with torch.no_grad():
        logits = view_of(model).logits(tokens, [len(row) - 1 for row in rows], hooks)
    answers = torch.tensor([model.to_single_token(target) for target in facts["target"]])
    return logits.double().log_softmax(-1)[torch.arange(len(rows)), answers]


def capitals_of(name: str) -> pd.DataFrame:
    """Of these, capitals of countries whose row is in countries.csv, with that row's columns."""
    facts = facts_of(name)
    facts = facts[facts["kind"] == "capital"]
    facts = facts.assign(capital=facts["target"].str.strip())
    joined = facts.merge(pd.read_csv(DEMOS / "data" / "countries.csv"), on="capital", how="inner")
    return joined[[country in prompt for country, prompt in zip(joined["country"], joined["prompt"], strict=True)]]


def recorded(path: Path) -> dict[str, dict[str, Any]]:
    """What a record holds, by fact; a line that a kill cut short is passed over."""
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            done[json.dumps([row[name] for name in KEY])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return done


def tabled(path: Path, name: str) -> dict[str, dict[str, Any]]:
    """What a CSV has of a model, by fact, as a record holds it."""
    rows = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=KEY)
    return {json.dumps([row[key] for key in KEY]): row for row in rows[rows["model"] == name].to_dict("records")}


def worked(claim: str, name: str, facts: pd.DataFrame, work: Work, until: float) -> Iterator[dict[str, Any]]:
    """One row for each fact, from the table, the record or anew, until the time is up."""
    path = HERE / f"{claim}.{name}.record.jsonl"
    done, model = {**tabled(HERE / f"{claim}.csv", name), **recorded(path)}, None
    for _, fact in facts.iterrows():
        key = {"model": name, **{column: fact[column] for column in KEY[1:]}}
        row = done.get(json.dumps(list(key.values())))
        if row is None:
            if time.monotonic() > until:
                return
            model = model or load(name)
            row = {**key, **one(name, model, fact, work)}
            with path.open("a", encoding="utf-8") as record:
                record.write("\n" * bool(record.tell()) + json.dumps(row))
        yield row


def one(name: str, model: Any, fact: pd.Series, work: Work) -> dict[str, float]:
    """The numbers of one fact."""
    found = work(name, tlsv.trace(model, fact["prompt"], fact["target"]), fact)
    return {measure: round(float(value), 5) for measure, value in found.items()}


def run(claim: str, work: Work, facts: Callable[[str], pd.DataFrame] = facts_of) -> None:
    """The command line of an experiment: work through facts, write CLAIM.csv; or --check some of it again."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--facts", type=int, default=40, help="of each model")
    parser.add_argument("--minutes", type=float, default=60.0, help="of each model, after which no fact is begun")
    parser.add_argument("--check", type=int, default=0, help="compute so many facts of the CSV again and compare")
    options = parser.parse_args()
    out = HERE / f"{claim}.csv"
    if options.check:
        print(f"largest difference {again(pd.read_csv(out), options.check, options.models, work, facts):.1e}")
        return
    for name in options.models:
        until = time.monotonic() + 60 * options.minutes
        rows = pd.DataFrame(worked(claim, name, facts(name).head(options.facts), work, until))
        kept = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=KEY)
        kept = pd.concat([part for part in (kept[kept["model"] != name], rows) if len(part)], ignore_index=True)
        order = kept["model"].map(MODELS.index)
        kept.iloc[order.argsort(kind="stable")].to_csv(out, index=False, lineterminator="\n")
        print(f"{claim}: {len(rows)} facts of {name}", file=sys.stderr)


def again(
    table: pd.DataFrame, number: int, names: list[str], work: Work, facts: Callable[[str], pd.DataFrame]
) -> float:
    """The largest difference between a table and facts of it computed again.

    Raises:
        SystemExit: if one is larger than rounding.
    """
    worst = 0.0
    for name in names:
        rows = table[table["model"] == name]
        rows = rows.sample(min(number, len(rows)), random_state=SEED)
        if rows.empty:
            continue
        model, known = load(name), facts(name).set_index(["prompt", "target"])
        for _, row in rows.iterrows():
            fact = known.loc[(row["prompt"], row["target"])].copy()
            fact["prompt"], fact["target"] = row["prompt"], row["target"]
            found = one(name, model, fact, work)
            for measure, value in found.items():
                most = RISING if "rising" in measure else AGAIN
                if not np.isclose(value, row[measure], atol=most, rtol=AGAIN, equal_nan=True):
                    raise SystemExit(f"{name}, {row['prompt']!r}: {measure} was {row[measure]} and is {value}")
                if most == AGAIN and np.isfinite(value):
                    worst = max(worst, abs(value - row[measure]))
    return worst


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of the mean, by a bootstrap over facts."""
    generator = np.random.default_rng(SEED)
    means = values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
