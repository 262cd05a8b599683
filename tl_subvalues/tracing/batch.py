"""Several prompts at once, sharing what does not depend on the prompt: the forward pass, and a sweep's products."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import pandas as pd

from tl_subvalues.importance.candidates import Candidates, Ranked
from tl_subvalues.importance.search import ranked_by, require_top
from tl_subvalues.importance.shared_sweep import shared_sweep
from tl_subvalues.importance.together import rank_together
from tl_subvalues.labels import NAMES, Unit, labels_of
from tl_subvalues.model_view import prompt_tokens, view_of
from tl_subvalues.model_view.indexing import resolve_index, whole_number
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.progress import bar
from tl_subvalues.readout.asked import REST, asked
from tl_subvalues.readout.reading import Reading, read_together
from tl_subvalues.readout.readout import Scale, require_scale
from tl_subvalues.tracing.effect_tables import effect_tables
from tl_subvalues.tracing.prompt import Question, traces_of_prompts
from tl_subvalues.tracing.spaces import warn_of_misplaced_spaces
from tl_subvalues.tracing.trace import Trace
from tl_subvalues.upstream.effects import EffectPositions, EffectUnit, Wanted
from tl_subvalues.upstream.led_back import EffectRule


def trace_batch(
    model: Any,
    prompts: Any,
    targets: Any = None,
    *,
    against: Any = None,
    position: SupportsIndex = -1,
    scale: Scale = "frozen",
    prepend_bos: bool | None = None,
    batch_size: SupportsIndex = 16,
    show_progress: bool = False,
) -> "TraceBatch":
    """Trace one target through each of several prompts, run in batches (padded on the left where lengths differ).

    Args:
        model: a TransformerLens model.
        prompts: texts or token ids, as `trace` takes them.
        targets: one for each prompt, as `trace` takes them; None is the model's most probable next token everywhere.
        against: what each target is measured against, one for each prompt; "rest" or None goes for all.
        position: where the targets are predicted, counted in each prompt; negative counts from its end.
        scale: as in `trace`.
        prepend_bos: as in `trace`.
        batch_size: prompts a forward pass.
        show_progress: show a progress bar over the prompts.

    Raises:
        UnsupportedModelError: as `trace`.
        ValueError: as `trace`, naming the prompt's number; and unless there is one target for each prompt.
    """
    view = view_of(model)
    require_scale(scale)
    batch_size = whole_number(batch_size, "batch_size")
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"a list of prompts is needed, at least one, got {prompts!r}.")
    wanted = zip(
        prompts, _one_each(targets, "targets", len(prompts)), _one_each(against, "against", len(prompts)), strict=True
    )
    work = []
    for number, (prompt, target, other) in enumerate(wanted):
        try:
            tokens = prompt_tokens(view, prompt, prepend_bos)
            at = resolve_index(position, len(tokens), "position")
            work.append(Question(tokens, asked(view, target, other), at))
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from error
    traces = []
    with bar("tracing", len(work), "prompts", show=show_progress) as shown:
        for start in range(0, len(work), batch_size):
            batch = work[start : start + batch_size]
            for question, made in zip(batch, traces_of_prompts(view, batch, scale), strict=True):
                traces.append(made)
                warn_of_misplaced_spaces(made, question.wanted)
            shown.update(len(batch))
    return TraceBatch(tuple(traces), batch_size=batch_size)


def _one_each(given: Any, what: str, n: int) -> list[Any]:
    """One for each prompt; None, and "rest", go for all."""
    if given is None or (isinstance(given, str) and given == REST):
        return [given] * n
    if getattr(given, "ndim", 0) == 1 and hasattr(given, "tolist"):  # a tensor, a numpy array, a pandas column
        given = given.tolist()
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != n:
        number = "" if isinstance(given, str) or not isinstance(given, Sequence) else f" of {len(given)}"
        raise ValueError(
            f"{what} is a list with one for each of the {n} prompts (as many {what} as prompts), got "
            f"{type(given).__name__}{number} {given!r}."
        )
    return list(given)


@dataclass(frozen=True, eq=False)
class TraceBatch(Sequence[Trace]):
    """Traces of several prompts; made by `trace_batch`. Tables are the traces' own, behind a column `prompt`.

    They are made `batch_size` prompts at a time, with a number for every sublayer, word and prompt of them in memory.

    Attributes:
        traces: one for each prompt.
        batch_size: how many prompts a table is made of at a time.
    """

    traces: tuple[Trace, ...]
    batch_size: int = field(default=16, kw_only=True)
    _kept: dict[int, list[Reading]] = field(default_factory=dict, init=False, repr=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, number: Any) -> Any:
        return self.traces[number]

    def layers(self, *, words: int | None = None) -> pd.DataFrame:
        """`Trace.layers` of every prompt."""
        return _together([trace.layers(words=words) for trace in self.traces])

    def heads(
        self,
        top: int | None = None,
        *,
        largest: bool = True,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """`Trace.heads` of every prompt."""
        return self._tables("head", top, largest, words, show_progress)

    def head_positions(
        self,
        top: int | None = 300,
        *,
        largest: bool = True,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """`Trace.head_positions` of every prompt."""
        return self._tables("head_position", top, largest, words, show_progress)

    def ffn_neurons(
        self,
        top: int | None = 300,
        *,
        largest: bool = True,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """`Trace.ffn_neurons` of every prompt; with top=None, the sweep's products are shared."""
        return self._tables("ffn_neuron", top, largest, words, show_progress)

    def attn_neurons(
        self,
        top: int | None = 300,
        *,
        largest: bool = True,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """`Trace.attn_neurons` of every prompt; with top=None, the sweep's products are shared."""
        return self._tables("attn_neuron", top, largest, words, show_progress)

    @no_autocast_no_grad
    def effects(
        self,
        unit: EffectUnit = "ffn_neuron",
        *,
        top: int | None = 300,
        positions: EffectPositions = "all",
        rule: EffectRule = "gradient",
        largest: bool | None = None,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """`Trace.effects` of every prompt.

        By rule "gradient", so many prompts share a forward and a backward pass as autograd keeps some 512 MB of
        (counted as a Llama's); by the others each is led back by itself.

        `attrs` has a list of each prompt's score and of its direct_left_out.
        """
        wanted, tables = Wanted(unit, rule, positions, require_top(top), largest), []
        with bar(f"effects in {len(self.traces)} prompts", len(self.traces), "prompts", show=show_progress) as shown:
            for start in range(0, len(self.traces), self.batch_size):
                traces = self.traces[start : start + self.batch_size]
                tables += effect_tables(traces, wanted, words)
                shown.update(len(traces))
        return _together(tables)

    def _readings_of(self, start: int, traces: Sequence[Trace]) -> list[Reading]:
        """Readings of the traces from `start` on; those of the last batch are kept for the next table."""
        if start not in self._kept:
            self._kept.clear()
            self._kept[start] = read_together([trace.target_at for trace in traces])
        return self._kept[start]

    @no_autocast_no_grad
    def _tables(
        self, unit: Unit, top: int | None, largest: bool, words: int | None, show_progress: bool
    ) -> pd.DataFrame:
        top, tables = require_top(top), []
        with bar(
            f"{NAMES[unit]} of {len(self.traces)} prompts", len(self.traces), "prompts", show=show_progress
        ) as shown:
            for start in range(0, len(self.traces), self.batch_size):
                traces = self.traces[start : start + self.batch_size]
                readings = self._readings_of(start, traces)
                many = [made[unit] for made in candidates_of(traces, readings, (unit,))]
                if top is None and unit in ("ffn_neuron", "attn_neuron") and all(one.reading.whole for one in many):
                    found = [ranked_by(one, s, largest) for one, s in zip(many, shared_sweep(many), strict=True)]
                else:
                    found = rank_together(many, top, largest)
                for trace, one, ranked in zip(traces, many, found, strict=True):
                    tables.append(trace.with_words(trace.table(one, ranked), words))
                shown.update(len(traces))
        return _together(tables)


@no_autocast_no_grad
def share_readings(traces: Sequence[Trace]) -> None:
    """Make the readings of traces of one model in one product with the vocabulary, where there are none yet.

    Each trace keeps its own, a number for every sublayer and word.
    """
    without = [trace for trace in traces if "reading" not in vars(trace)]
    made = read_together([trace.target_at for trace in without]) if without else []
    for trace, reading in zip(without, made, strict=True):
        vars(trace)["reading"] = reading


@no_autocast_no_grad
def candidates_together(traces: Sequence[Trace], units: Sequence[Unit]) -> list[dict[Unit, Candidates]]:
    """`Trace.candidates` of several traces of one model, whose distributions are made together.

    Raises:
        UnsupportedModelError: if a layer has no such parts, naming all that have none.
    """
    return candidates_of(traces, read_together([trace.target_at for trace in traces]), units)


def candidates_of(
    traces: Sequence[Trace], readings: Sequence[Reading], units: Sequence[Unit]
) -> list[dict[Unit, Candidates]]:
    """Candidates of several traces with their readings; errors as `candidates_together`."""
    for trace in traces:
        trace.run.require_unchanged()
    return [
        {unit: Candidates(reading, trace.run.parts_of(unit)) for unit in units}
        for trace, reading in zip(traces, readings, strict=True)
    ]


@no_autocast_no_grad
def tops_together(
    traces: Sequence[Trace], units: Sequence[Unit], top: int | None
) -> list[dict[Unit, list[tuple[str, float]]]]:
    """The top of each unit in several traces of one model: labels with their increases in nats, the highest first."""
    made = candidates_together(traces, units)
    ranked = iter(rank_together([one[unit] for one in made for unit in units], top))
    return [{unit: _labelled(one[unit], next(ranked)) for unit in units} for one in made]


def _labelled(candidates: Candidates, ranked: Ranked) -> list[tuple[str, float]]:
    columns = {name: c.tolist() for name, c in candidates.parts.fields(ranked.group, ranked.index).items()}
    if "expert" in columns:
        columns["expert"] = [None if expert < 0 else expert for expert in columns["expert"]]
    return list(zip(labels_of(candidates.parts.unit, columns), ranked.increase.tolist(), strict=True))


# What of a table's `attrs` a table of several prompts has a list of, and what it is called there.
_MANY = {"certificate": "certificates", "score": "score", "direct_left_out": "direct_left_out"}


def _together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of several prompts as one, behind a column `prompt`."""
    attrs = [table.attrs for table in tables]
    for number, table in enumerate(tables):
        table.insert(0, "prompt", number)
        table.attrs = {}
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs = {
        _MANY.get(name, name): [own[name] for own in attrs] for name in _MANY if all(name in own for own in attrs)
    }
    return whole
