"""Questions over one model: answers that are the trace's own, one at a time, kept, stopped, refused in a sentence."""

import threading
import time
from typing import Any

import pandas as pd
import pytest
from helpers import zoo
from helpers.served import Slow

import tl_subvalues as tlsv
from tl_subvalues.live import session as live
from tl_subvalues.live.session import Session, Stopped
from tl_subvalues.progress import step, watching
from tl_subvalues.saved.document import checked
from tl_subvalues.saved.packing import unpacked
from tl_subvalues.tracing.tracer import Tracer

pytestmark = [pytest.mark.slow, pytest.mark.any_release, pytest.mark.bridge]
PROMPT = "w3 w4 w5"


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.bridge("llama")


@pytest.fixture(scope="module")
def tracer(model: Any) -> Tracer:
    return Tracer(model, top=5)


@pytest.fixture
def session(tracer: Tracer) -> Session:
    return Session(tracer)


def ask(session: Session, kind: str, **rest: Any) -> dict[str, Any]:
    found = session.answer({"ask": kind, **rest})
    assert "error" not in found, found
    return found


def traced(session: Session, prompt: str = PROMPT, target: str = "w6", against: str = "") -> dict[str, Any]:
    return ask(session, "trace", prompt=prompt, target=target, against=against)


def test_a_trace_is_the_librarys_own(session: Session, model: Any) -> None:
    """Document, target of the model's choice, several words, against; the history has them, the newest first."""
    own = tlsv.trace(model, PROMPT, "w6")
    found = traced(session)
    document = checked(found["document"])
    assert document["target"]["log_prob"] == pytest.approx(own.log_prob, abs=1e-6)
    assert document["tables"]["ffn_neurons"]["columns"]["label"]["values"] == own.ffn_neurons(5)["label"].tolist()
    chosen = traced(session, target="")["document"]["target"]
    assert chosen["rank"] == 1
    both = traced(session, target='["w6", "w7"]', against="rest")["document"]["target"]
    assert (both["texts"], both["against"]) == (["w6", "w7"], "rest")
    history = ask(session, "history")["history"]
    assert [one["trace"] for one in history] == [3, 2, 1]
    assert history[0]["target"] == ["w6", "w7"]
    assert ask(session, "show", trace=1)["document"] == document


def test_a_part_that_the_document_does_not_hold(session: Session, model: Any) -> None:
    """Increase, coefficient, words, activation scores, total and measured effect, of neurons and heads alike."""
    own, document = tlsv.trace(model, PROMPT, "w6"), traced(session)["document"]
    tables = {"ffn_neurons": own.ffn_neurons(None), "attn_neurons": own.attn_neurons(None), "heads": own.heads()}
    for name, table in tables.items():
        row = table.iloc[-1]
        label = row["label"]
        assert name == "heads" or label not in document["activations"]
        part = ask(session, "part", trace=1, label=label)["part"]
        assert part["notes"] == []
        assert part["parts"][label]["increase"] == pytest.approx(row["log_prob_increase"], abs=2e-6)
        after = own.ablate(label, position=own.position)
        measured = after["log_prob_before"] - after["log_prob_after"]
        assert part["ablations"] == {label: pytest.approx(measured, abs=2e-6)}
        words = own.vocabulary(label, 10, by="cosine")
        assert part["words"]["cosine"][label]["top"]["texts"] == words[words["side"] == "top"]["token"].tolist()
        if name != "heads":
            assert part["parts"][label]["coefficient"] == pytest.approx(row["coefficient"], abs=1e-6)
            scores = unpacked(part["activations"][label]["sublayer"])
            pd.testing.assert_frame_equal(scores, own.activations(label), check_like=True)
    effects = own.effects(top=None)
    elsewhere = effects[effects["position"] < own.position].iloc[0]
    part = ask(session, "part", trace=1, label=elsewhere["label"])["part"]
    assert part["total_effects"] == {elsewhere["label"]: pytest.approx(elsewhere["total_effect"], abs=1e-6)}
    assert (part["activations"], part["parts"]) == ({}, {elsewhere["label"]: {}})
    assert ask(session, "part", trace=1, label="L1H2D3")["part"]["notes"] != []


def test_another_target_through_the_same_run(session: Session, model: Any) -> None:
    """As traced anew; what it is against stays, and is refused where it is the new target."""
    traced(session, against="w8")
    found = ask(session, "retarget", trace=1, token=9)["document"]
    own = tlsv.trace(model, PROMPT, 9, against="w8")
    assert found["target"]["value"] == pytest.approx(own.value, abs=1e-6)
    assert found["tables"]["heads"]["columns"]["label"]["values"] == own.heads(5)["label"].tolist()
    again = session.answer({"ask": "retarget", "trace": 1, "token": own.against_ids[0]})
    with pytest.raises(ValueError) as refused:
        tlsv.trace(model, PROMPT, "w8", against="w8")
    assert again == {"error": str(refused.value)}


def test_runs_and_documents_are_let_go(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an old run the prompt is run again; an old document is told to be gone."""
    monkeypatch.setattr(live, "_DOCUMENTS", 5)
    first = traced(session, against="w8")
    before = ask(session, "part", trace=1, label="L1N3")["part"]
    for word in ("w3", "w4", "w5", "w7"):
        traced(session, target=word)
    assert list(session._runs) == [3, 4, 5]
    again = ask(session, "part", trace=1, label="L1N3")["part"]
    assert again["parts"]["L1N3"]["increase"] == pytest.approx(before["parts"]["L1N3"]["increase"], abs=1e-6)
    assert ask(session, "show", trace=1)["document"] == first["document"]
    traced(session, target="w9")
    assert session.answer({"ask": "show", "trace": 1}) == {"error": "trace 1 is not kept any more; ask for it anew."}
    assert [one["trace"] for one in ask(session, "history")["history"]] == [6, 5, 4, 3, 2]


def test_what_is_wrong_is_a_sentence(session: Session, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own where it has one; limits name themselves."""
    traced(session)
    for target, against in (("w3 w4", ""), ("w6", "w6"), ("nothing", ""), ('["w6", "w6"]', ""), ("w6", '["w6"]')):
        given = [
            [text.strip('[]"') for text in word.split(", ")] if "[" in word else word for word in (target, against)
        ]
        with pytest.raises(ValueError) as refused:
            tlsv.trace(model, PROMPT, given[0], against=given[1] or None)
        answer = session.answer({"ask": "trace", "prompt": PROMPT, "target": target, "against": against})
        assert answer == {"error": str(refused.value)}
    monkeypatch.setattr(live, "MOST_TOKENS", 3)
    question = {"ask": "trace", "target": "", "against": ""}
    wrong = [
        ([], "the question's part 'ask' is no text."),
        ({"ask": 3}, "the question's part 'ask' is no text."),
        ({"ask": "rm"}, "a question asks for trace, retarget, part, show or history, got 'rm'."),
        ({"ask": "trace", "prompt": 3}, "the question's part 'prompt' is no text."),
        ({"ask": "part", "trace": True, "label": "L1N3"}, "the question's part 'trace' is no number."),
        ({"ask": "part", "trace": 9, "label": "L1N3"}, "trace 9 is not kept any more; ask for it anew."),
        ({"ask": "part", "trace": 1, "label": "L9N3"}, "'L9N3' is not in this trace"),
        ({"ask": "part", "trace": 1, "label": "<img>"}, "'<img>' is not a label"),
        ({"ask": "retarget", "trace": 1, "token": 10**9}, "1000000000"),
        ({**question, "prompt": "w3 " * 7000}, "the prompt has 21,000 characters, more than the 20,000"),
        ({**question, "prompt": "w3 w4 w5 w6"}, "more than the 3 that a page takes; shorten it"),
    ]
    for one, sentence in wrong:
        assert sentence in session.answer(one)["error"]


def test_a_stopped_question_leaves_the_model_free(session: Session) -> None:
    """At any step; the next is answered as if nothing had been."""
    steps: list[str] = []
    with watching(steps.append):
        expected = traced(session)["document"]
    assert any("FFN neurons: " in one for one in steps)
    assert {"the graph", "measured ablations", "words by cosine"} <= set(steps)
    for last in range(0, len(steps), max(1, len(steps) // 6)):
        left = iter(range(last))

        def stop(what: str, left: Any = left) -> None:
            if next(left, None) is None:
                raise Stopped

        with watching(stop), pytest.raises(Stopped):
            traced(session)
        step("nobody watches")
    assert traced(session)["document"] == expected


def test_one_at_a_time(tracer: Tracer) -> None:
    """The second is told that it waits, one too many is refused, and all that waited are answered."""
    slow = Slow(tracer, seconds=1.0)
    session = Session(slow)
    told: list[str] = []
    found: list[Any] = []

    def asking(prompt: str) -> None:
        with watching(told.append):
            found.append(session.answer({"ask": "trace", "prompt": prompt, "target": "w6", "against": ""}))

    threads = [threading.Thread(target=asking, args=("w3 w4 w5 w6 w7 w8",))]
    threads[0].start()
    while not slow.begun:
        time.sleep(0.01)
    threads += [threading.Thread(target=asking, args=(PROMPT,)) for _ in range(live.MOST_WAITING)]
    for one in threads[1:]:
        one.start()
    while sum(one.startswith("waiting: ") for one in told) < 2 * live.MOST_WAITING:
        time.sleep(0.01)
    refused = session.answer({"ask": "trace", "prompt": PROMPT, "target": "w6", "against": ""})
    assert refused == {"error": "the model is busy, and 3 questions wait already; ask again later."}
    assert session.answer({"ask": "history"}) == {"history": []}
    for one in threads:
        one.join(60)
    assert len(found) == 1 + live.MOST_WAITING
    assert all("document" in one for one in found)


def test_changed_weights_are_noticed() -> None:
    """A part of a run whose model is another by now is refused, not mixed."""
    model = zoo.bridge("llama")
    session = Session(Tracer(model, top=3))
    traced(session)
    model.unembed.original_component.weight.data.mul_(1.1)
    assert "trace the prompt again" in session.answer({"ask": "part", "trace": 1, "label": "L1N3"})["error"]
    assert "trace the prompt again" in session.answer({"ask": "retarget", "trace": 1, "token": 9})["error"]
