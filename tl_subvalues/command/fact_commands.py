"""The commands over many facts: `evaluate` and `collect`, both resumable."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tl_subvalues.command.options import BOS, DEVICE, DTYPE, MODEL, SCALE, options
from tl_subvalues.command.start_up import load, quieten, say, word_check
from tl_subvalues.errors import shown
from tl_subvalues.version import __version__

# What both commands have.
shared_options = options(
    MODEL,
    click.option("--out", metavar="FILE", help="Write the table to a .parquet or .csv file."),
    click.option(
        "--record",
        metavar="FILE",
        help="Where to keep what is done; beside --out, or in the cache folder otherwise.",
    ),
    click.option(
        "--on-error",
        default="stop",
        show_default=True,
        type=click.Choice(["stop", "skip"]),
        help="What to do about bad lines: name them and stop, or name them and go on without.",
    ),
    SCALE,
    BOS,
    DEVICE,
    DTYPE,
)


@click.command("evaluate")
@click.argument("facts", metavar="FACTS.csv")
@click.option("--rankings", help="Names with commas between; all of them otherwise. random is always among them.")
@click.option("--ks", default="10,50,300", show_default=True, help="How many neurons to ablate, commas between.")
@click.option("--seed", default=0, show_default=True, help="Of the random ranking and of the bootstrap.")
@click.option("--by", metavar="COLUMN", help="A column of the facts: rows for each of its values.")
@click.option("--plot", metavar="FILE", help="Save a picture of the table as .png, .svg or .pdf.")
@shared_options
def evaluate_command(
    facts: str, rankings: str | None, ks: str, seed: int, by: str | None, plot: str | None, name: str, **options: Any
) -> None:
    """Compare rankings of FFN neurons: ablate the top k of each, over all facts (columns prompt, target, against).

    Killed at any moment, the same command goes on from where it was.
    """
    if plot is not None:
        from tl_subvalues.command.pictures import require_picture

        require_picture(plot)
        if by is not None:
            raise ValueError("--plot draws one group of facts; leave --by out.")
    numbers = [k.strip() for k in ks.split(",")]
    if not all(k.isdecimal() for k in numbers):
        raise ValueError(f"--ks is numbers with commas between, got {ks!r}.")
    chosen = None if rankings is None else [ranking.strip() for ranking in rankings.split(",")]
    settings = {"rankings": chosen, "ks": tuple(int(k) for k in numbers), "seed": seed, "by": by}
    _run("evaluate", facts, name, settings, plot=plot, **options)


@click.command("collect")
@click.argument("facts", metavar="FACTS.csv")
@click.option("--top", default=300, show_default=True, type=click.IntRange(min=1), help="Units of a kind in a fact.")
@click.option("--positions", is_flag=True, help="Keep attention neurons at different source positions apart.")
@shared_options
def collect_command(facts: str, top: int, positions: bool, name: str, **options: Any) -> None:
    """Collect the neurons and heads that raise targets most, over all facts (prompt, target, against).

    Killed at any moment, the same command goes on from where it was.
    """
    _run("collect", facts, name, {"top": top, "positions": positions}, **options)


def _run(
    what: str,
    facts: str,
    name: str,
    settings: dict[str, Any],
    out: str | None,
    record: str | None,
    on_error: str,
    scale: str,
    bos: bool | None,
    device: str | None,
    dtype: str,
    plot: str | None = None,
) -> None:
    # Cheap checks first: loading a model takes seconds.
    if not Path(facts).is_file():
        raise ValueError(f"{shown(facts)}: there is no such file.")
    from tl_subvalues.study.collect import collect
    from tl_subvalues.study.evaluate import evaluate
    from tl_subvalues.study.facts import check_words
    from tl_subvalues.study.output import require_writable_table
    from tl_subvalues.study.rankings import chosen_rankings
    from tl_subvalues.study.record import record_path
    from tl_subvalues.study.sources import read_rows

    require_writable_table(out)
    rows = read_rows(facts)
    if what == "evaluate":
        chosen_rankings(settings["rankings"], settings["seed"])
    if on_error == "stop":
        check_words(rows, word_check(name))
    progress = sys.stderr.isatty()
    quieten(progress)
    if record is None and out is None:
        record = str(_own_record(what, facts, name, {**settings, "scale": scale, "bos": bos, "dtype": dtype}))
    call: Callable[..., Any] = evaluate if what == "evaluate" else collect
    common = {"scale": scale, "prepend_bos": bos, "on_error": on_error, "out": out, "record": record}
    try:
        table = call(load(name, device, dtype), facts, show_progress=progress, **common, **settings)
    except KeyboardInterrupt:
        _say_what_is_kept(record_path(record, out))
        raise click.exceptions.Exit(130) from None
    for problem in table.attrs["skipped"]:
        say(f"{facts}, {problem} (left out)")
    if plot is not None:
        from tl_subvalues.command.pictures import save_evaluation

        save_evaluation(table, plot)
        say(f"saved {plot}")
    if out is not None:
        say(f"{len(table):,} rows are written to {out}")
    if what == "evaluate" or out is None:
        from tl_subvalues.command.fact_tables import show

        show(table, terminal=sys.stdout.isatty())


def _say_what_is_kept(record: Path | None) -> None:
    """After Ctrl-C: how many facts are in the record, and how to go on."""
    lines = record.read_bytes().count(b"\n") if record is not None and record.is_file() else 0
    facts = max(0, lines - 1)  # the first line says whose record it is
    kept = f"{facts:,} fact{'' if facts == 1 else 's'} {'is' if facts == 1 else 'are'} kept in {record}"
    say(f"stopped; {kept}, from where the same command goes on." if facts else "stopped; nothing is kept yet.")


def _own_record(what: str, facts: str, name: str, settings: dict[str, Any]) -> Path:
    """A record in the cache folder, of its own for every command, file of facts, model and settings."""
    from tl_subvalues.loading.models import cache_folder
    from tl_subvalues.study.record import digest

    folder = cache_folder() / "records"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in settings.items() if key != "by"}  # groups the results, changes none
    content = [__version__, Path(facts).read_text(encoding="utf-8-sig", errors="replace"), name, settings]
    return folder / f"{what}-{digest(content)}.jsonl"
