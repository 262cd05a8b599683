"""The command `mcp`: the analyses as tools of the Model Context Protocol, over one loaded model and standard input."""

import functools
import importlib.metadata
import json
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import click

from tl_subvalues.command.options import DEVICE, DTYPE, MODEL, options
from tl_subvalues.command.start_up import load, quieten
from tl_subvalues.errors import SubvaluesWarning, first_line

if TYPE_CHECKING:
    from mcp.server import MCPServer

Answer = dict[str, Any]

# What a call may ask for at most, so that an answer stays what a program can read; one call runs at a time.
LONGEST_PROMPT = 20_000  # characters
MOST_ROWS, MOST_WORDS, MOST_LABELS = 100, 50, 300

_INSTRUCTIONS = (
    "Where in one language model a fact is stored: neurons and heads are scored by the log-probability that they add "
    "to a word. Words are single tokens: mind their leading space, as in ' Paris'. Labels: L24N1005 (FFN neuron), "
    "L3E5N10 (of an expert), L23H4 (head), L23H4@3 (head reading source position 3), L23H4D38@3 (attention neuron), "
    "24_mlp_out (sublayer); L11N1229@0 is added at position 0."
)


@click.command("mcp")
@options(MODEL, DEVICE, DTYPE)
def mcp_command(name: str, device: str | None, dtype: str) -> None:
    """Serve trace, effects, find, neuron and ablate to programs, by the Model Context Protocol on standard input."""
    try:
        import mcp.server  # noqa: F401 (before the model, which takes seconds)
    except ImportError as error:
        raise ImportError("the server needs the package mcp: pip install 'tl-subvalues[mcp]'.") from error
    quieten(progress=False)
    server_of(load(name, device, dtype), name).run()


def server_of(model: Any, name: str) -> "MCPServer":
    """A server of one model's tools. `name` is what the user calls the model."""
    from mcp.server import MCPServer

    server: MCPServer = MCPServer(
        "tl-subvalues",
        instructions=f"{_INSTRUCTIONS} The model is {name}.",
        version=importlib.metadata.version("tl-subvalues"),
        log_level="ERROR",
    )
    lock = threading.Lock()
    for tool in _tools(model, name):
        server.add_tool(_safe(tool, lock))
    return server


def _safe(tool: Callable[..., Answer], lock: AbstractContextManager[bool]) -> Callable[..., Answer]:
    """One call at a time; what is wrong with it as the sentence that a client is shown."""
    from mcp.server.mcpserver.exceptions import ToolError

    @functools.wraps(tool)
    def run(*args: Any, **keywords: Any) -> Answer:
        with lock:
            try:
                return tool(*args, **keywords)
            except (ValueError, KeyError, OSError, RuntimeError, TypeError) as error:
                raise ToolError(first_line(error)) from error

    return run


def _tools(model: Any, name: str) -> list[Callable[..., Answer]]:
    # One function a tool: its signature is the schema that clients see, its docstring the description.
    from tl_subvalues.command import answers
    from tl_subvalues.command.report import make_report, to_json
    from tl_subvalues.tracing.prompt import trace as trace_prompt
    from tl_subvalues.tracing.trace import Trace

    def traced(prompt: str, target: str | list[str] | None, against: str | list[str] | None) -> tuple[Trace, list[str]]:
        """The trace, and what was warned of."""
        _at_most("prompt", len(prompt), LONGEST_PROMPT, "characters")
        for what, words in (("target", target), ("against", against)):
            _at_most(what, len(words) if isinstance(words, list) else 1, MOST_WORDS, "words")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SubvaluesWarning)
            found = trace_prompt(model, prompt, target, against=against)
        return found, [str(one.message) for one in caught if issubclass(one.category, SubvaluesWarning)]

    def trace(
        prompt: str,
        target: str | list[str] | None = None,
        against: str | list[str] | None = None,
        top: int = 10,
    ) -> Answer:
        """What raises the log-probability of a word after a prompt: layers, heads, source positions, neurons.

        Also what switched the first FFN neuron on, and query neurons; with the words that each row writes.
        target: a word, any of several, or none for the model's most probable next token. against: measure
        log p(target) - log p(against) instead; "rest" is all other words. top: rows of each table.
        """
        _at_most("top", top, MOST_ROWS)
        found, said = traced(prompt, target, against)
        report = make_report(found, model=name, top=top, chosen=target is None, warnings=said)
        return dict(json.loads(to_json(report)))

    def effects(
        prompt: str,
        target: str | list[str] | None = None,
        against: str | list[str] | None = None,
        unit: Literal["sublayer", "head", "head_position", "attn_neuron", "ffn_neuron", "embedding"] = "ffn_neuron",
        rule: Literal["gradient", "frozen", "half"] = "gradient",
        top: int = 10,
    ) -> Answer:
        """What parts do to a word through the rest of the model, at all positions: direct and total effects, in nats.

        rule: gradient predicts what ablating a part does; frozen and half say what the output consists of.
        """
        _at_most("top", top, MOST_ROWS)
        found, said = traced(prompt, target, against)
        answer = answers.effects_answer(found, name, unit=unit, top=top, rule=rule)
        return _plain({**answer, "warnings": said})

    def find(
        words: list[str],
        unit: Literal["ffn_neuron", "attn_neuron"] = "ffn_neuron",
        top: int = 20,
        by: Literal["cosine", "bs_value"] = "cosine",
        largest: bool = True,
    ) -> Answer:
        """Which neurons of the model write any of these words, by their rows, without a prompt; sign as stored.

        largest: false finds rows that write the words where their coefficient is negative.
        """
        _at_most("top", top, MOST_ROWS)
        _at_most("words", len(words), MOST_WORDS)
        return _plain(answers.find_answer(model, name, words, unit=unit, top=top, by=by, largest=largest))

    def neuron(label: str, words: int = 10, top: int = 5, by: Literal["cosine", "bs_value"] = "cosine") -> Answer:
        """A neuron's card: the words of its row, and the rows of other neurons that point most nearly the same way.

        The words at the top are written where its coefficient is positive, those at the bottom where it is negative.
        words: a side. top: rows like it.
        """
        _at_most("words", words, MOST_WORDS)
        _at_most("top", top, MOST_ROWS)
        return _plain(answers.neuron_answer(model, name, label, k=words, top=top, by=by))

    def ablate(
        prompt: str,
        labels: list[str],
        target: str | list[str] | None = None,
        against: str | list[str] | None = None,
        factor: float = 0.0,
        position: int | None = None,
    ) -> Answer:
        """The word's log-probability, probability and rank before and after components are multiplied with a factor.

        factor: 0 takes them out. position: where, negative from the end; none is everywhere.
        """
        _at_most("labels", len(labels), MOST_LABELS)
        found, said = traced(prompt, target, against)
        answer = answers.ablate_answer(found, name, labels=labels, factor=factor, position=position)
        return _plain({**answer, "warnings": said})

    return [trace, effects, find, neuron, ablate]


def _at_most(what: str, given: int, most: int, unit: str = "") -> None:
    """Refuse more than a call may ask for.

    Raises:
        ValueError: naming the limit.
    """
    if given > most:
        raise ValueError(f"{what} is at most {most:,}{f' {unit}' if unit else ''} in one call, got {given:,}.")


def _plain(answer: Answer) -> Answer:
    """Python's own numbers alone."""
    from tl_subvalues.command.answers import to_json

    return dict(json.loads(to_json(answer)))
