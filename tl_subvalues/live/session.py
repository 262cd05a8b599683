"""Questions over one model, one at a time, and their answers: the same for the server and for the widget.

A question is an object of JSON, told apart by its key `ask`:

    trace       prompt, target, against: texts; an empty target is the model's own choice
    retarget    trace, token: another word through the run of that trace
    part        trace, label: what the document of that trace does not hold of a part
    show        trace: an earlier answer again
    history     what was asked before

The answer is {"error": a sentence}, or what was asked for: {"trace": its number, "document", "history"}, {"part"} or
{"history"}.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from tl_subvalues.errors import first_line, told
from tl_subvalues.progress import step
from tl_subvalues.saved.document import Document

Answer = dict[str, Any]

LONGEST_PROMPT = 20_000  # characters, before they are made tokens
MOST_TOKENS = 1024  # total effects keep all attention patterns for a while: of SmolLM2-135M 1.1 GB at this length
MOST_WAITING = 3
_DOCUMENTS = 20  # that are kept to be shown again
_RUNS = 3  # whose activations are kept; of an earlier one the prompt is run again
_LONGEST_WORD = 2000
_SHOWN = 58  # characters of a prompt in the history
# Errors whose message is a sentence for who asked.
_TOLD = (ValueError, KeyError, OSError, RuntimeError, TypeError)


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """Who asked does not want the answer any more; raised by what watches the steps."""


@runtime_checkable
class Tracer(Protocol):
    """What makes traces; `tl_subvalues.tracing.tracer.Tracer`."""

    def tokens(self, prompt: str) -> list[int]:
        """A prompt as token ids."""
        ...

    def trace(self, tokens: list[int], target: Any, against: Any) -> tuple[Any, list[str]]:
        """A trace, and what was warned of."""
        ...

    def retarget(self, traced: Any, target: Any) -> Any:
        """Another target through the same run."""
        ...

    def document(self, traced: Any) -> Document:
        """What a page shows."""
        ...

    def part(self, traced: Any, label: str) -> Document:
        """What a document holds of one part."""
        ...


class Session:
    """Answers questions over a tracer's model; any thread may ask, the model works for one at a time."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._turn = threading.Lock()
        self._asking = threading.Semaphore(1 + MOST_WAITING)
        self._numbers = itertools.count(1)
        self._documents: OrderedDict[int, Document] = OrderedDict()
        self._runs: OrderedDict[int, Any] = OrderedDict()

    def answer(self, question: Any) -> Answer:
        """The answer, or {"error": what is wrong with the question, in a sentence}.

        Raises:
            Stopped: from what watches the steps.
        """
        try:
            return self._answered(question)
        except Stopped:
            raise
        except _TOLD as error:
            return {"error": first_line(error)}
        except Exception as error:  # a mistake of ours, or another library's
            return {"error": f"{told(error)}."}

    def keep(self, traced: Any, said: list[str] | None = None) -> Answer:
        """A trace among those that can be asked about, and its document."""
        document = self._tracer.document(traced)
        document = {**document, "notes": [*(said or []), *document["notes"]]}
        number = next(self._numbers)
        self._remember(self._runs, number, traced, _RUNS)
        self._remember(self._documents, number, document, _DOCUMENTS)
        return self._shown(number)

    def run(self, number: int) -> Any:
        """The trace of that number, run again where it was let go.

        Raises:
            ValueError: if it is not kept.
        """
        if number not in self._runs:
            known = self._document(number)
            against, target = known["target"]["against"], known["target"]["ids"]
            wanted = against["ids"] if isinstance(against, Mapping) else against
            self._remember(self._runs, number, self._tracer.trace(known["tokens"]["ids"], target, wanted)[0], _RUNS)
        self._runs.move_to_end(number)
        return self._runs[number]

    def _answered(self, question: Any) -> Answer:
        kind = _field(question, "ask", str)
        if kind == "history":
            return {"history": self._history()}
        if kind == "show":
            return self._shown(_field(question, "trace", int))
        if kind == "trace":
            prompt = _text(question, "prompt", LONGEST_PROMPT)
            words = [_text(question, name, _LONGEST_WORD) for name in ("target", "against")]
            with self._in_turn():
                return self.keep(*self._traced(prompt, *words))
        if kind == "retarget":
            number, token = _field(question, "trace", int), _field(question, "token", int)
            with self._in_turn():
                return self.keep(self._tracer.retarget(self.run(number), token))
        if kind == "part":
            number, label = _field(question, "trace", int), _text(question, "label", 100)
            with self._in_turn():
                return {"part": self._tracer.part(self.run(number), label)}
        raise ValueError(f"a question asks for trace, retarget, part, show or history, got {kind[:40]!r}.")

    def _traced(self, prompt: str, target: str, against: str) -> tuple[Any, list[str]]:
        tokens = self._tracer.tokens(prompt)
        _at_most("the prompt", len(tokens), MOST_TOKENS, "tokens")
        return self._tracer.trace(tokens, target, against)

    def _document(self, number: int) -> Document:
        if number not in self._documents:
            raise ValueError(f"trace {number} is not kept any more; ask for it anew.")
        return self._documents[number]

    def _shown(self, number: int) -> Answer:
        return {"trace": number, "document": self._document(number), "history": self._history()}

    def _history(self) -> list[Answer]:
        """What was asked, the newest first."""
        return [_entry(number, document) for number, document in reversed(list(self._documents.items()))]

    def _remember(self, where: OrderedDict[int, Any], number: int, one: Any, most: int) -> None:
        where[number] = one
        while len(where) > most:
            where.popitem(last=False)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Wait until the model is free, told as a step.

        Raises:
            ValueError: if too many wait already.
        """
        if not self._asking.acquire(blocking=False):
            raise ValueError(f"the model is busy, and {MOST_WAITING} questions wait already; ask again later.")
        try:
            while not self._turn.acquire(timeout=0.1):
                step("waiting: the model works at another question")
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._asking.release()


def _entry(number: int, document: Document) -> Answer:
    target, texts = document["target"], document["tokens"]["texts"]
    against, prompt = target["against"], "".join(texts[: document["position"] + 1])
    return {
        "trace": number,
        "prompt": prompt if len(prompt) <= _SHOWN else f"…{prompt[-_SHOWN:]}",
        "target": target["texts"][:3],
        "against": against["texts"][:3] if isinstance(against, Mapping) else against,
        "prob": target["prob"],
    }


def _field(question: Any, name: str, kind: type) -> Any:
    """A part of a question.

    Raises:
        ValueError: if it is missing, or of another kind.
    """
    value = question.get(name) if isinstance(question, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"the question's part {name!r} is no {'number' if kind is int else 'text'}.")
    return value


def _text(question: Any, name: str, longest: int) -> str:
    text: str = _field(question, name, str)
    _at_most(f"the {name}", len(text), longest, "characters")
    return text


def _at_most(what: str, given: int, most: int, unit: str) -> None:
    """Refuse more than a question may hold.

    Raises:
        ValueError: naming the limit.
    """
    if given > most:
        raise ValueError(
            f"{what} has {given:,} {unit}, more than the {most:,} that a page takes; shorten it, or use tlsv.trace."
        )
