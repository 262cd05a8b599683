"""What `evaluate` and `collect` print: tables that fit a terminal, or all columns as plain text for a pipe."""

from collections.abc import Iterator
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.text import Text

from tl_subvalues.command.screen import drawn, probability
from tl_subvalues.errors import shown

# Rows of each kind of unit on a terminal; in a pipe or a file there are all.
_UNITS = 10
# Characters of a value that facts are grouped by: it stands in every line.
_GROUP = 40
_KINDS = {"ffn_neuron": "FFN neurons", "attn_neuron": "Attention neurons", "head": "Attention heads"}


def show(table: pd.DataFrame, *, terminal: bool) -> None:
    """Print the table of an evaluation, or of units collected."""
    if not terminal:
        click.echo(to_text(table))
        return
    console = Console()
    for title, columns, note in _evaluation(table) if "ranking" in table else _collection(table):
        console.print(Text(f"\n{title}", style="bold"))
        console.print(drawn(columns, numeric=set(columns) - {"ranking", "label"}))
        if note:
            console.print(Text(note))


def to_text(table: pd.DataFrame) -> str:
    """All rows, and all columns but the intervals."""
    chosen = table[[column for column in table.columns if not column.endswith(("_low", "_high"))]].copy()
    groups = list(table.columns[: list(table.columns).index("ranking")]) if "ranking" in table else []
    for name in groups:
        chosen[name] = [shown(value, _GROUP) for value in chosen[name]]
    names = {name: shown(name, _GROUP) for name in groups}
    return chosen.rename(columns=names).to_string(index=False, float_format="{:.4g}".format)


def _evaluation(table: pd.DataFrame) -> Iterator[tuple[str, dict[str, list[Any]], str]]:
    """One part for each group of facts: what the targets are as it is, and what is left of them."""
    groups = list(table.columns[: list(table.columns).index("ranking")])
    parts = table.groupby(groups, sort=False, dropna=False) if groups else [((), table)]
    for key, rows in parts:
        names = [
            f"{shown(name, _GROUP)} {shown(value, _GROUP)}" for name, value in zip(groups, _as_tuple(key), strict=True)
        ]
        first, n = rows.iloc[0], int(rows["n_facts"].iloc[0])
        difference = "log_prob_diff_after" in table
        measure, called = ("log_prob_diff", "difference") if difference else ("log_prob", "log p")
        title = (
            f"{', '.join([*names, f'{n:,} fact' + 's' * (n > 1)])}; nothing ablated: {called} "
            f"{first[f'{measure}_before']:.3f}, p {probability(first['prob_before'])}, MRR {first['mrr_before']:.3f}"
        )
        low, high = rows[f"{measure}_after_low"], rows[f"{measure}_after_high"]
        columns = {
            "ranking": rows["ranking"].tolist(),
            "ablated": [f"{k:,}" for k in rows["k"]],
            called: [f"{value:.3f}" for value in rows[f"{measure}_after"]],
            "95%": [f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)],
            "p": [probability(p) for p in rows["prob_after"]],
            "MRR": [f"{value:.3f}" for value in rows["mrr_after"]],
        }
        yield title, columns, ""


def _collection(table: pd.DataFrame) -> Iterator[tuple[str, dict[str, list[Any]], str]]:
    """One part for each kind of unit."""
    for kind, rows in table.groupby("unit", sort=False):
        top = rows.head(_UNITS)
        columns = {
            "label": top["label"].tolist(),
            "sum of increases": [f"{value:+.3f}" for value in top["sum_increase"]],
            "facts": [f"{n:,}" for n in top["n_facts"]],
            "mean rank": [f"{rank:.1f}" for rank in top["mean_rank"]],
        }
        more = len(rows) - len(top)
        yield _KINDS[str(kind)], columns, f"and {more:,} more; --out FILE, or a pipe, has all" if more else ""


def _as_tuple(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)
