"""The server for programs, asked by the protocol's own client in a process of its own."""

import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from helpers import zoo

import tl_subvalues as tlsv

pytest.importorskip("mcp", reason="the extra mcp is not installed")
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tl_subvalues.command import mcp

pytestmark = [pytest.mark.slow, pytest.mark.any_release]
PROMPT = "w3 w4 w5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    zoo.hf_model("llama").save_pretrained(path)
    zoo.tokenizer().save_pretrained(path)
    return path


def asked(folder: Path, ask: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    """What a client is told by a server of its own."""

    async def session() -> Any:
        program = "from tl_subvalues.command.cli import main; main()"
        server = StdioServerParameters(
            command=sys.executable,
            args=["-c", program, "mcp", "--model", str(folder)],
            env={key: value for key, value in os.environ.items() if key in ("PATH", "PYTHONPATH", "HOME")},
        )
        async with Client(stdio_client(server)) as client:
            return await ask(client)

    return asyncio.run(session())


def test_its_tools_answer_what_the_functions_say(folder: Path) -> None:
    """trace, effects, find, neuron and ablate over one loaded model, as structured content."""

    async def ask(client: Client) -> dict[str, Any]:
        tools = await client.list_tools()
        assert [tool.name for tool in tools.tools] == ["trace", "effects", "find", "neuron", "ablate"]
        assert all(tool.description and tool.input_schema["properties"] for tool in tools.tools)
        calls = {
            "trace": {"prompt": PROMPT, "target": "w6", "top": 3},
            "effects": {"prompt": PROMPT, "target": ["w6", "w7"], "against": "w8", "unit": "head", "top": 4},
            "find": {"words": ["w9", "w33"], "top": 2},
            "neuron": {"label": "L1N3", "words": 2, "top": 3},
            "ablate": {"prompt": PROMPT, "target": "w6", "labels": ["L1N3", "L0H2"]},
        }
        found = {}
        for name, arguments in calls.items():
            result = await client.call_tool(name, arguments)
            assert not result.is_error, result.content
            found[name] = result.structured_content
        return found

    found = asked(folder, ask)
    for name, answer in found.items():
        assert answer["schema"] == f"tl-subvalues/{name}/1"
        assert answer["model"] == str(folder)
        assert answer["versions"]["tl-subvalues"] == importlib.metadata.version("tl-subvalues")
    model = tlsv.load_model(str(folder), device="cpu")
    trace = tlsv.trace(model, PROMPT, "w6")
    assert found["trace"]["log_prob"] == pytest.approx(trace.log_prob, abs=1e-6)
    assert [row["label"] for row in found["trace"]["ffn_neurons"]["rows"]] == trace.ffn_neurons(top=3)["label"].tolist()
    effects = tlsv.trace(model, PROMPT, ["w6", "w7"], against="w8").effects("head", top=4, words=5)
    assert [row["label"] for row in found["effects"]["rows"]] == effects["label"].tolist()
    assert [row["writes"] for row in found["effects"]["rows"]] == effects["writes"].tolist()
    assert found["effects"]["measure"] == "log_prob_diff"
    assert [row["label"] for row in found["find"]["rows"]] == tlsv.find(model, ["w9", "w33"], top=2)["label"].tolist()
    assert [row["label"] for row in found["neuron"]["similar"]] == tlsv.similar(model, "L1N3", top=3)["label"].tolist()
    assert len(found["neuron"]["top"]) == len(found["neuron"]["bottom"]) == 2
    for name, value in trace.ablate(["L1N3", "L0H2"]).items():
        assert found["ablate"][name] == pytest.approx(value, abs=1e-6)


def test_what_is_wrong_is_a_sentence_and_the_server_goes_on(folder: Path) -> None:
    """The errors' own sentences, limits on sizes, arguments of other types; the next call is answered."""
    wrong = [
        ("find", {"words": ["w3 w4"]}, "the word 'w3 w4' is 2 tokens"),
        ("find", {"words": ["w3"], "top": 101}, "top is at most 100"),
        ("find", {"words": ["w3"], "top": 0}, "top is a positive number"),
        ("find", {"words": ["w3"] * 51}, "words is at most 50 in one call, got 51"),
        ("find", {"words": 3}, "valid list"),
        ("find", {"words": ["w3"], "unit": "head"}, "ffn_neuron"),
        ("neuron", {"label": "L1H2"}, "is no neuron"),
        ("neuron", {"label": "L1N3", "words": 51}, "words is at most 50"),
        ("trace", {"prompt": "", "target": "w6"}, "empty"),
        ("trace", {"prompt": "w3 " * 7000, "target": "w6"}, "prompt is at most 20,000 characters"),
        ("effects", {"prompt": PROMPT, "target": "nothing"}, "not in the vocabulary"),
        ("ablate", {"prompt": PROMPT, "labels": ["L9N1"]}, "L9N1"),
        ("ablate", {"prompt": PROMPT, "labels": ["L0N1"] * 301}, "labels is at most 300"),
        ("nothing", {}, "nothing"),
    ]

    async def ask(client: Client) -> None:
        for name, arguments, message in wrong:
            result = await client.call_tool(name, arguments)
            assert result.is_error, name
            assert message in result.content[0].text, (name, result.content[0].text)
        together = await asyncio.gather(*(client.call_tool("find", {"words": [f"w{i}"]}) for i in range(3, 9)))
        assert [one.structured_content["words"] for one in together] == [[f"w{i}"] for i in range(3, 9)]

    asked(folder, ask)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is loaded."""
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(ImportError, match=r"pip install 'tl-subvalues\[mcp\]'"):
        mcp.mcp_command.callback("nowhere", None, "float32")
