"""The commands over many facts: `evaluate` and `collect`, both resumable, and `merge` for their parts."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tl_subvalues.command.options import BOS, DEVICE, DTYPE, MODEL, SCALE, options
from tl_subvalues.command.start_up import debug_option, load, quieten, say, word_check
from tl_subvalues.version import __version__

# What both commands have.
shared_options = options(
    MODEL,
    click.option(
        "--out",
        metavar="FILE",
        help="Write the table to a .parquet or .csv file; or, into a folder (no suffix), Parquet parts for `merge`.",
    ),
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
    click.option("--batch-size", metavar="N", type=click.IntRange(min=1), help="Facts worked through together."),
    click.option("--shard", metavar="I/N", help="Only every N-th fact, from the I-th on (from 0); --out is a folder."),
    click.option(
        "--ray",
        metavar="ADDRESS",
        is_flag=False,
        flag_value="auto",
        help="Share the work among Ray's workers: at an address, or where one runs, else here; --out is a folder.",
    ),
    click.option(
        "--column",
        "mapped",
        metavar="NAME=COLUMN",
        multiple=True,
        help="What prompt, target or against is called in the facts, as in prompt=question; may be repeated.",
    ),
    click.option("--layout", type=click.Choice(["counterfact", "lama"]), help="Of a collection of facts."),
    SCALE,
    BOS,
    DEVICE,
    DTYPE,
)


@click.command("evaluate")
@click.argument("facts", metavar="FACTS")
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

    FACTS is a CSV, Parquet or JSON file, or a dataset of Hugging Face: its folder, or its name.

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
@click.argument("facts", metavar="FACTS")
@click.option("--top", default=300, show_default=True, type=click.IntRange(min=1), help="Units of a kind in a fact.")
@click.option("--positions", is_flag=True, help="Keep attention neurons at different source positions apart.")
@shared_options
def collect_command(facts: str, top: int, positions: bool, name: str, **options: Any) -> None:
    """Collect the neurons and heads that raise targets most, over all facts (columns prompt, target, against).

    FACTS is a CSV, Parquet or JSON file, or a dataset of Hugging Face: its folder, or its name.

    Killed at any moment, the same command goes on from where it was.
    """
    _run("collect", facts, name, {"top": top, "positions": positions}, **options)


@click.command("merge")
@click.argument("paths", nargs=-1, required=True, metavar="FOLDER...")
@click.option("--out", metavar="FILE", help="Write the table to a .parquet or .csv file.")
@debug_option
def merge_command(paths: Sequence[str], out: str | None) -> None:
    """Make the table of parts that `collect` or `evaluate` wrote, from their folders or files.

    Parts of other models or settings, missing and doubled ones are refused by name.
    """
    from tl_subvalues.study.merge import merge
    from tl_subvalues.study.output import require_writable_table

    require_writable_table(out)
    table = merge(list(paths), out)
    for problem in table.attrs["skipped"]:
        say(f"{problem} (left out)")
    _give(table, out, always="ranking" in table)


def _run(
    what: str,
    facts: str,
    name: str,
    settings: dict[str, Any],
    out: str | None,
    record: str | None,
    on_error: str,
    batch_size: int | None,
    shard: str | None,
    ray: str | None,
    mapped: Sequence[str],
    layout: str | None,
    scale: str,
    bos: bool | None,
    device: str | None,
    dtype: str,
    plot: str | None = None,
) -> None:
    # Cheap checks first: loading a model takes seconds.
    columns = _columns(mapped)
    many = {"shard": _shard(shard), "ray": False if ray is None else True if ray == "auto" else ray}
    from tl_subvalues.study.collect import collect
    from tl_subvalues.study.evaluate import evaluate
    from tl_subvalues.study.facts import check_words
    from tl_subvalues.study.output import require_writable_table
    from tl_subvalues.study.places import place_of
    from tl_subvalues.study.rankings import chosen_rankings
    from tl_subvalues.study.record import record_path
    from tl_subvalues.study.sources import stream_rows

    folder = place_of(out, record=record, **many)
    if folder is None:
        require_writable_table(out)
    rows = stream_rows(facts, columns, layout)
    if what == "evaluate":
        chosen_rankings(settings["rankings"], settings["seed"])
    if on_error == "stop":
        check_words(rows, word_check(name))
    progress = sys.stderr.isatty()
    quieten(progress)
    if record is None and out is None:
        kept = {**settings, "scale": scale, "bos": bos, "dtype": dtype, "columns": columns, "layout": layout}
        record = str(_own_record(what, facts, name, kept))
    call: Callable[..., Any] = evaluate if what == "evaluate" else collect
    common: dict[str, Any] = {"scale": scale, "prepend_bos": bos, "on_error": on_error, "out": out, "record": record}
    common |= {"batch_size": batch_size, "columns": columns, "layout": layout, **many}
    try:
        table = call(load(name, device, dtype), facts, show_progress=progress, **common, **settings)
    except KeyboardInterrupt:
        if folder is None:
            _say_what_is_kept(record_path(record, out))
        else:
            say(f"stopped; finished parts are kept in {out}, from where the same command goes on.")
        raise click.exceptions.Exit(130) from None
    for problem in table.attrs["skipped"]:
        say(f"{facts}, {problem} (left out)")
    if plot is not None:
        from tl_subvalues.command.pictures import save_evaluation

        save_evaluation(table, plot)
        say(f"saved {plot}")
    if folder is not None:
        say(f"the parts are in {out}; `tl-subvalues merge {out}` makes the table of all shards")
        return
    _give(table, out, always=what == "evaluate")


def _give(table: Any, out: str | None, always: bool) -> None:
    """Say where the table was written; show it where it was not, or always."""
    if out is not None:
        say(f"{len(table):,} rows are written to {out}")
    if always or out is None:
        from tl_subvalues.command.fact_tables import show

        show(table, terminal=sys.stdout.isatty())


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, of = text.partition("/")
    if not (index.isdecimal() and of.isdecimal()):
        raise ValueError(f"--shard is I/N, the I-th of N counted from 0, as in 0/8, got {text!r}.")
    return int(index), int(of)


def _columns(mapped: Sequence[str]) -> dict[str, str] | None:
    pairs = [text.partition("=") for text in mapped]
    if not all(sign and column for _, sign, column in pairs):
        raise ValueError(f"--column is NAME=COLUMN, as in prompt=question, got {', '.join(map(repr, mapped))}.")
    return {name: column for name, _, column in pairs} or None


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
    path = Path(facts)
    source = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else str(path.resolve())
    content = [__version__, source, name, settings]
    return folder / f"{what}-{digest(content)}.jsonl"
