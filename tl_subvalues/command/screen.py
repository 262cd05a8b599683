"""A report as it is printed: tables as wide as the terminal, or plain text in columns for a pipe."""

import math
import sys
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tl_subvalues.command.shown import Shown
from tl_subvalues.errors import shown
from tl_subvalues.labels import NAMES

_TITLES = {
    "layers": "Sublayers that raise the {measure} most",
    "heads": "Attention heads",
    "head_positions": "Attention heads at one source position",
    "ffn_neurons": "FFN neurons",
    "attn_neurons": "Attention neurons at one source position",
    "activations": "What switched {neuron} on (score; all scores add up to its {sums_to})",
    "effects": "Effects of {unit} through the rest of the model (rule {rule!r})",
    "query_ffn_neurons": "Query neurons: what switched the top {values} FFN neurons on",
}
_MEASURES = {"log_prob": "log-probability", "log_prob_diff": "difference"}
_HEADINGS = {
    "label": "label",
    "token": "reads",
    "coefficient": "coeff.",
    "log_prob_increase": "Δ log p",
    "log_prob_diff_increase": "Δ diff.",
    "prob_increase": "Δ p",
    "direct_effect": "direct",
    "total_effect": "total",
    "score": "score",
    "share": "share",
    "query_score": "query score",
    "sink": "sink",
    "writes": "writes (cosine)",
    "raises": "raises here",
}
# Units whose positions are those that they read.
_READING = (NAMES["head_position"], NAMES["attn_neuron"])
_FORMS = {
    "coeff.": "{:+.2f}",
    "Δ log p": "{:+.3f}",
    "Δ diff.": "{:+.3f}",
    "Δ p": "{:+.2e}",
    "direct": "{:+.3f}",
    "total": "{:+.3f}",
    "score": "{:+.3f}",
    "share": "{:+.1%}",
    "query score": "{:+.3f}",
}
# Of a longer prompt, the end is shown, and the tokens around the positions that tables name.
_LONG_PROMPT, _LONG_TEXT = 40, 200
_END, _AROUND = 8, 2


class WholeWords:
    """Short texts in lines as long as there is room; none is broken in two, not even at a space inside it."""

    def __init__(self, words: Sequence[str], between: str = " ", first: str = "") -> None:
        """Args: words; between, what separates them; first, what stands before the first and is room in other lines."""
        self._words, self._between, self._first = list(words), between, first

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """The longest word at least, and all in one line at most."""
        indent = cell_len(self._first)
        longest = indent + max((cell_len(word) for word in self._words), default=0)
        whole = indent + cell_len(self._between.join(self._words))
        return Measurement(min(longest, options.max_width), min(max(longest, whole), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Line by line."""
        for line in self.lines(options.max_width):
            yield Text(line, no_wrap=True, overflow="fold")

    def lines(self, width: int) -> list[str]:
        """The lines at a width."""
        lines, line = [], self._first
        for number, word in enumerate(self._words):
            joined = f"{line}{word}" if number == 0 else f"{line}{self._between}{word}"
            if number and cell_len(joined) > width:
                lines.append(line)
                joined = " " * cell_len(self._first) + word
            line = joined
        return [*lines, line]


def write(report: Shown, as_json: str, json_file: str | None) -> None:
    """Print a report, as tables on a terminal; and as JSON into a file, or to standard output instead (`-`)."""
    if json_file == "-":
        click.echo(as_json, nl=False)
        return
    if json_file is not None:
        Path(json_file).write_text(as_json, encoding="utf-8")
    if sys.stdout.isatty():
        print_rich(report, Console())
    else:
        click.echo(to_text(report), nl=False)


def to_text(report: Shown) -> str:
    """The report as plain text in columns, for a pipe or a file."""
    head = _head(report)
    sections = ["\n".join([head[0], *_positions(report).lines(120), *head[1:]])]
    for name, table in report.tables.items():
        columns = {
            heading: [" ".join(cell) if isinstance(cell, list) else cell for cell in cells]
            for heading, cells in _columns(table).items()
        }
        sections.append(f"{_title(report, name, table)}\n{pd.DataFrame(columns).to_string(index=False)}")
    sections += [*report.notes, *report.warnings]
    return "\n\n".join(sections) + "\n"


def print_rich(report: Shown, console: Console) -> None:
    """The report as tables on a terminal."""
    first, *others = _head(report)
    console.print(Text(first))
    console.print(_positions(report))
    console.print(Text("\n".join(others)))
    for name, table in report.tables.items():
        console.print(Text(f"\n{_title(report, name, table)}", style="bold"))
        console.print(drawn(_stacked(_columns(table)), numeric=set(_FORMS)))
    for note in [*report.notes, *report.warnings]:
        console.print(Text(f"\n{note}"))


def drawn(columns: dict[str, list[Any]], numeric: set[str]) -> Table:
    """Columns of text, of lists of words, or of such lists one below the other, as a table that fits the terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for heading, cells in columns.items():
        words = any(isinstance(cell, (list, Group)) for cell in cells)
        table.add_column(heading, justify="right" if heading in numeric else "left", no_wrap=not words)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(_cell, row))
    return table


def _cell(cell: Any) -> WholeWords | Group | Text:
    if isinstance(cell, Group):
        return cell
    return WholeWords(cell) if isinstance(cell, list) else Text(str(cell))


def _stacked(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Both readings in one column, for two are too wide: what each row raises here below what it writes, with a +."""
    writes, raises = _HEADINGS["writes"], _HEADINGS["raises"]
    if raises not in columns:
        return columns
    pairs = zip(columns[writes], columns[raises], strict=True)
    both = [Group(WholeWords(first), WholeWords(second, first="+ ")) for first, second in pairs]
    return {
        **{name: own for name, own in columns.items() if name not in (writes, raises)},
        f"{writes}, + {raises}": both,
    }


def render(report: Shown, console: Console) -> str:
    """What `print_rich` would print, as text (for tests and saved transcripts)."""
    recorder = Console(file=StringIO(), width=console.width, force_terminal=False)
    print_rich(report, recorder)
    file = recorder.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def probability(p: float) -> str:
    """A probability in per cent, with as many digits as it takes to tell it from 0 and from 1."""
    rest = min(p, 1 - p)
    if p <= 0 or p >= 1 or rest < 1e-6:
        return f"{p:.2g}" if p < 0.5 else "100%" if p >= 1 else f"1 - {1 - p:.1g}"
    decimals = max(1, 1 - math.floor(math.log10(100 * rest) + 1e-6))  # 1 - p has a rounding error of its own
    return f"{p:.{decimals}%}"


def _head(report: Shown) -> list[str]:
    """What was asked and what came out, line by line."""
    asked = " or ".join(map(repr, report.target_tokens))
    against = report.against_tokens
    others = "the rest" if isinstance(against, str) else " or ".join(map(repr, against or []))
    prompt = report.prompt if len(report.prompt) <= _LONG_TEXT else f"…{report.prompt[-_LONG_TEXT:]}"
    chosen = " (the model's most probable next token)" if report.target_chosen else ""
    lines = [f"{shown(report.model)}: {prompt!r} -> {asked}{chosen}{f' against {others}' if others else ''}"]
    value = f"log p = {report.log_prob:.3f}, p = {probability(report.prob)}, rank {report.rank}"
    if len(report.target_tokens) > 1:
        value += " (p of any of them, rank of the first among them)"
    if report.log_prob_diff is not None:
        lines.append(f"log p({asked}) - log p({others}) = {report.log_prob_diff:+.3f}")
    lines.append(f"{value}, read at position {report.position} ({report.scale} scale)")
    return [*lines, report.summary, *report.legend]


def _positions(report: Shown) -> WholeWords:
    """The prompt's tokens by position; of a long prompt those around what is shown, and its end."""
    chosen = _positions_shown(report)
    words, last = [], -1
    for position in chosen:
        if position > last + 1:
            words.append("…")
        words.append(f"{position}:{report.tokens[position]!r}")
        last = position
    return WholeWords(words if last == len(report.tokens) - 1 else [*words, "…"], "  ", "positions  ")


def _positions_shown(report: Shown) -> list[int]:
    n = len(report.tokens)
    if n <= _LONG_PROMPT:
        return list(range(n))
    chosen = set(range(max(0, report.position + 1 - _END), report.position + 1))
    named = pd.concat([table["position"] for table in report.tables.values() if "position" in table])
    for position in named.value_counts().index:
        around = set(range(max(0, position - _AROUND), min(n, position + _AROUND + 1)))
        if len(chosen | around) <= _LONG_PROMPT:
            chosen |= around
    return sorted(chosen)


def _title(report: Shown, name: str, table: pd.DataFrame) -> str:
    return _TITLES[name].format(**{"measure": _MEASURES[report.measure], **table.attrs})


def _columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """The columns that are printed, numbers rounded, words as lists of them."""
    columns = {heading: table[name].tolist() for name, heading in _HEADINGS.items() if name in table}
    for name in ("writes", "raises"):
        if name in table:
            columns[_HEADINGS[name]] = [[repr(word) for word in words] for words in table[name]]
    if "sink" in columns:
        columns["sink"] = ["sink" if sink else "" for sink in columns["sink"]]
    for heading, form in _FORMS.items():
        if heading in columns:
            columns[heading] = [form.format(number) for number in columns[heading]]
    if not any(columns.get("reads", [])):
        columns.pop("reads", None)
    else:
        columns["reads"] = [repr(token) if token else "" for token in columns["reads"]]
    if table.attrs.get("unit", _READING[0]) not in _READING:  # effects of what is added at a position, not read there
        columns = {"at" if heading == "reads" else heading: values for heading, values in columns.items()}
    return columns
