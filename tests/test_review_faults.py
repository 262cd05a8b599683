"""What a reviewer found: bad input in one sentence, and rows that were not the ones asked for."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from helpers import zoo
from helpers.facts import make_facts

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

PROMPT = "w5 w9 w20 w31"


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.model("llama")


@pytest.fixture(scope="module")
def trace(model: Any) -> tlsv.Trace:
    return tlsv.trace(model, PROMPT, "w37")


@pytest.mark.parametrize("unit", ["head_position", "attn_neuron"])
def test_the_top_effects_are_the_first_of_all(trace: tlsv.Trace, unit: Any) -> None:
    """Sources after their reader are no rows, and do not stand in the way of rows with negative effects."""
    whole = trace.effects(unit, top=None, largest=True)
    assert (whole["position"] <= whole["destination"]).all()
    for top in (len(whole) // 2, len(whole) - 3):
        chosen = trace.effects(unit, top=top, largest=True)
        assert chosen["total_effect"].tolist() == whole["total_effect"].tolist()[:top]


def test_the_graph_s_json_has_the_target_where_it_is_predicted(model: Any, tmp_path: Path) -> None:
    """At the trace's position, not at the prompt's last; numpy's number of nodes will do."""
    early = tlsv.trace(model, PROMPT, "w37", position=1)
    early.graph(nodes=np.int64(4)).to_json(tmp_path / "graph.json")  # type: ignore[arg-type]
    nodes = json.loads((tmp_path / "graph.json").read_text(encoding="utf-8"))["nodes"]
    assert [node["ctx_idx"] for node in nodes if node["feature_type"] == "logit"] == [1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda trace: trace.graph(edges="0.9"), "edges is the share of influence"),
        (lambda trace: trace.graph(edges=None), "edges is the share of influence"),
        (lambda trace: trace.graph(rule=[]), "rule is 'frozen' or 'half'"),
        (lambda trace: trace.ablate_each([f"L0N3@{trace.position + 1}"]), "the table is of another trace"),
    ],
)
def test_refused(call: Any, says: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=re.escape(says)):
        call(tlsv.trace(model, PROMPT, "w37", position=2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rankings": 3}, "rankings are names, or functions by name, got 3"),
        ({"rankings": [["norm"]]}, "rankings are names, or functions by name"),
        ({"rankings": {"random": lambda trace: tlsv.RANKINGS["norm"](trace)}}, "'random' is the name of the random"),
        ({"by": 3}, "by is a column of the facts, or several, got 3"),
    ],
)
def test_evaluate_refuses(arguments: dict[str, Any], says: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ranking of one's own under the control's name among them: it would be replaced."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=re.escape(says)):
        tlsv.evaluate(model, make_facts(2), ks=(2,), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_unpacks_without_limit_is_refused(method: int, tmp_path: Path) -> None:
    """By its method, before anything is unpacked."""
    with zipfile.ZipFile(tmp_path / "trace.zip", "w", method) as archive:
        archive.writestr("trace.json", " " * 10_000_000)
    with pytest.raises(ValueError, match="packed by another method than deflate"):
        tlsv.open_trace(tmp_path / "trace.zip")
