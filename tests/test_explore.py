"""`tl-subvalues explore`: the page in a real browser, its server against every attack, the command in a process."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import zoo
from helpers.browser import Browser, browser, violations
from helpers.command import run, tiny_folder
from helpers.served import Slow, served
from playwright.sync_api import Page, expect

import tl_subvalues as tlsv
from tl_subvalues.command import explore
from tl_subvalues.live import server
from tl_subvalues.live.guard import Keys
from tl_subvalues.live.session import Session
from tl_subvalues.tracing.tracer import Tracer

pytestmark = [pytest.mark.slow, pytest.mark.any_release, pytest.mark.bridge]
PROMPT = "w3 w4 w5"
QUESTION = {"ask": "trace", "prompt": PROMPT, "target": "w6", "against": ""}
HOSTILE = "</script><img src=x onerror='window.harmed=1'>\u202e\x1b[2J"


@pytest.fixture(scope="module")
def tracer() -> Slow:
    return Slow(Tracer(zoo.bridge("llama"), top=5))


@pytest.fixture(scope="module")
def session(tracer: Slow) -> Session:
    return Session(tracer)


@pytest.fixture(scope="module")
def site(session: Session) -> Iterator[tuple[str, Keys]]:
    with served(session) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture
def shown(chromium: Browser, site: tuple[str, Keys]) -> Iterator[Page]:
    """The page, let in by its token; it may ask nothing elsewhere and complain of nothing."""
    address, keys = site
    with chromium.page(f"{address}/?token={keys.token}") as (made, seen):
        assert made.url == f"{address}/"
        yield made
        assert seen.requests == []
        assert seen.errors == []


@contextmanager
def asked(
    site: tuple[str, Keys],
    method: str = "POST",
    path: str = "/ask",
    body: Any = QUESTION,
    without: tuple[str, ...] = (),
    **changed: str,
) -> Iterator[http.client.HTTPResponse]:
    """A request as the page sends it, but for what is changed or left out."""
    address, keys = site
    place = address.removeprefix("http://")
    headers = {
        "Host": place,
        "Origin": address,
        "Cookie": f"{keys.cookie}={keys.key}",
        "X-Tl-Subvalues": "explore",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    connection = http.client.HTTPConnection(place, timeout=60)
    try:
        given = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name: value for name, value in headers.items() if name not in without}
        connection.request(method, path, given if method == "POST" else None, sent)
        yield connection.getresponse()
    finally:
        connection.close()


def history(session: Session) -> list[Any]:
    return list(session.answer({"ask": "history"})["history"])


def test_as_the_page_asks_it_is_answered(site: tuple[str, Keys], session: Session) -> None:
    """Steps, then the answer; the page and its files have a policy."""
    before = len(history(session))
    with asked(site) as response:
        assert response.status == 200
        lines = [json.loads(line) for line in response.read().splitlines()]
    assert all("step" in line for line in lines[:-1])
    assert len(lines) > 5
    assert lines[-1]["document"]["schema"] == "tl-subvalues/saved-trace/1"
    assert len(history(session)) == before + 1
    for path in ("/", "/explore.js", "/explore.css"):
        with asked(site, "GET", path) as response:
            assert response.status == 200
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'; script-src 'self'" in policy
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            text = response.read().decode()
        assert set(re.findall(r"https?://[\w.-]+", text)) <= {"http://www.w3.org"}
        assert not any(name.lower().startswith("access-control") for name in response.headers)


@pytest.mark.parametrize("path", ["/", "/explore.js", "/explore.css", "/ask", "/nothing"])
def test_without_the_key_nothing_is_told(site: tuple[str, Keys], path: str) -> None:
    """No cookie, another's, one of another name, an empty one: not even what there is."""
    _, keys = site
    method = "POST" if path == "/ask" else "GET"
    for cookie in ("", "x=y", f"{keys.cookie}=", f"{keys.cookie}={keys.token}", f"other={keys.key}", "\x7f;;=;,"):
        with asked(site, method, path, Cookie=cookie) as response:
            assert response.status == 403
            assert response.read() == b"no token: open the address that tl-subvalues explore shows in its terminal."
    with asked(site, method, path, without=("Cookie",)) as response:
        assert response.status == 403


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(site: tuple[str, Keys]) -> None:
    """And leaves the address; a wrong token is no way in, whatever is in it."""
    _, keys = site
    with asked(site, "GET", f"/?token={keys.token}", without=("Cookie", "Origin")) as response:
        assert response.status == 303
        assert response.headers["Location"] == "/"
        cookie = response.headers["Set-Cookie"]
    assert cookie.startswith(f"{keys.cookie}={keys.key};")
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert keys.token not in cookie
    for token in ("", "x", keys.token[:-1], keys.key, "%ff%00", "%F0%9F%98%80"):
        with asked(site, "GET", f"/?token={token}", without=("Cookie",)) as response:
            assert response.status == 403
            assert "Set-Cookie" not in response.headers
    with asked(site, "POST", f"/?token={keys.token}", without=("Cookie",)) as response:
        assert response.status == 403


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:80", "127.0.0.1.example.org", "localhost.example.org", "10.0.0.1", "", "[::2]"]
)
def test_another_host_is_refused(site: tuple[str, Keys], host: str, session: Session) -> None:
    """A name that an attacker made to lead here (DNS rebinding) is not ours, whatever else is right."""
    before = len(history(session))
    for method, path in (("GET", "/"), ("POST", "/ask")):
        with asked(site, method, path, Host=host, Origin=f"http://{host}") as response:
            assert response.status == 400
    assert len(history(session)) == before


@pytest.mark.parametrize(
    "origin", ["http://example.org", "https://127.0.0.1", "null", "http://127.0.0.1:1", "http://localhost", ""]
)
def test_another_origin_is_refused(site: tuple[str, Keys], origin: str, session: Session) -> None:
    """Of another site, another port or another scheme; and on a question there must be one."""
    before = len(history(session))
    with asked(site, Origin=origin) as response:
        assert response.status == 403
        assert b"from this server's own page alone" in response.read()
    with asked(site, "GET", "/", Origin=origin) as response:
        assert response.status == 403
    with asked(site, without=("Origin",)) as response:
        assert response.status == 403
    for where in ("cross-site", "same-site"):
        with asked(site, Sec_Fetch_Site=where) as response:
            assert response.status == 403
    assert len(history(session)) == before


def test_without_our_header_nothing_is_done(site: tuple[str, Keys], session: Session) -> None:
    """No form can send it, and nobody else's script without a leave that is never given."""
    before = len(history(session))
    with asked(site, without=("X-Tl-Subvalues",)) as response:
        assert response.status == 403
        assert b"X-Tl-Subvalues" in response.read()
    with asked(site, X_Tl_Subvalues="1") as response:
        assert response.status == 403
    with asked(site, "OPTIONS", Origin="http://example.org", Access_Control_Request_Method="POST") as response:
        assert response.status == 403
        assert not any(name.lower().startswith("access-control") for name in response.headers)
    assert len(history(session)) == before


def test_reading_has_no_effects(site: tuple[str, Keys], session: Session) -> None:
    """A question in a GET, a HEAD, a PUT is none."""
    before = history(session)
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
        with asked(site, method, "/ask?ask=trace&prompt=w3&target=w6&against=") as response:
            assert response.status == 405
    for path in ("/", "/explore.js", "/explore.css", "/ask/../ask", "//ask"):
        with asked(site, "GET", path) as response:
            response.read()
    assert history(session) == before


def test_a_large_body_is_refused(site: tuple[str, Keys], session: Session) -> None:
    """By what it says of its length, and by what comes where it says nothing, before it is held in memory."""
    before = len(history(session))
    with asked(site, body=b" " * (server.LARGEST_BODY + 1)) as response:
        assert response.status == 413
        assert response.read() == b"a question has at most 1,048,576 bytes."
    address, keys = site
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30) as made:
        head = (
            f"POST /ask HTTP/1.1\r\nHost: {address[7:]}\r\nOrigin: {address}\r\nCookie: {keys.cookie}={keys.key}\r\n"
            "X-Tl-Subvalues: explore\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        made.sendall(head.encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(40):  # 2.5 MB, no end
                made.sendall(chunk)
        except OSError:
            pass
        assert made.recv(100).startswith(b"HTTP/1.1 413")
    for body in (b"", b"{", b"[" * 100_000, b"\xff"):
        with asked(site, body=body) as response:
            assert response.status == 400
            assert response.read() == b"a question is an object of JSON."
    assert len(history(session)) == before


def test_hostile_text_is_a_sentence(site: tuple[str, Keys]) -> None:
    """Escaped, and in one line; no traceback, no file's name."""
    for body in ({**QUESTION, "target": HOSTILE}, {**QUESTION, "prompt": 3}, [HOSTILE], {"ask": HOSTILE}):
        with asked(site, body=body) as response:
            (line,) = response.read().splitlines()[-1:]
        error = json.loads(line)["error"]
        assert error.isprintable()
        assert "Traceback" not in error
        assert ".py" not in error


def test_who_goes_away_stops_the_work(site: tuple[str, Keys], tracer: Slow, session: Session) -> None:
    """At the next step, and what comes next is answered."""
    begun, ended = tracer.begun, tracer.ended
    with asked(site, body={**QUESTION, "prompt": "w3 w4 w5 w6 w7 w8"}) as response:
        assert json.loads(response.readline()) is not None
        while tracer.begun == begun:
            response.readline()
    until = time.monotonic() + 5
    while tracer.ended == ended and time.monotonic() < until:
        time.sleep(0.05)
    assert (tracer.begun, tracer.ended) == (begun + 1, ended + 1)
    with asked(site) as response:
        assert "document" in json.loads(response.read().splitlines()[-1])


def fill(shown: Page, prompt: str, target: str = "", against: str = "") -> None:
    shown.get_by_label("prompt", exact=True).fill(prompt)
    shown.get_by_label("target", exact=True).fill(target)
    shown.get_by_label("against", exact=True).fill(against)


def test_from_a_prompt_to_a_live_answer(shown: Page, tracer: Slow) -> None:
    """Prompt, progress, view, a click, the live answer, another target, the history."""
    heading = shown.locator("h1")
    expect(shown.get_by_label("prompt", exact=True)).to_be_focused()
    fill(shown, PROMPT, "w6")
    shown.keyboard.press("Tab")
    shown.get_by_role("button", name="Trace").click()
    expect(heading).to_have_text("Where does w6 come from?", timeout=60_000)
    expect(shown.locator(".ask .status")).to_contain_text("done in")
    own = tlsv.trace(tracer._tracer.model, PROMPT, "w6")
    there = set(shown.eval_on_selector_all("[data-part]", "all => all.map(one => one.dataset.part)"))
    label = next(one for one in reversed(own.ffn_neurons(None)["label"].tolist()) if one not in there)
    shown.get_by_label("any part").fill(label)
    shown.keyboard.press("Enter")
    card = shown.locator(f".panel article[data-part='{label}']")
    expect(card).to_contain_text("switched on by", timeout=30_000)
    expect(card).to_contain_text("measured: lost without it")
    expect(card.locator(".vocabulary .word")).to_have_count(20)
    sum_of = card.locator(".scores td").all_inner_texts()
    numbers = [float(text.replace("−", "-").replace("+", "")) for text in sum_of]
    coefficient = own.ffn_neurons(None).set_index("label")["coefficient"][label]
    assert sum(numbers) == pytest.approx(coefficient, abs=0.02)
    shown.get_by_label("any part").fill("L9N9")
    shown.keyboard.press("Enter")
    expect(shown.locator(".panel article[data-part='L9N9']")).to_contain_text("'L9N9' is not in this trace")
    shown.get_by_text("what else the model would say").click()
    other = shown.locator(".predictions button").first
    word = other.inner_text()
    other.click()
    expect(heading).to_have_text(f"Where does {word} come from?", timeout=60_000)
    shown.get_by_text("asked before").click()
    past = shown.locator(".before button")
    assert past.count() >= 2
    expect(past.nth(0)).to_have_attribute("aria-current", "true")
    past.nth(1).click()
    expect(heading).to_have_text("Where does w6 come from?")
    expect(past.nth(1)).to_have_attribute("aria-current", "true")


def test_bad_input_is_told_and_the_page_goes_on(shown: Page) -> None:
    """The library's sentence beside the boxes; the view stays; then a good question."""
    wrong = shown.get_by_role("alert")
    fill(shown, PROMPT, "w3 w4")
    shown.keyboard.press("Enter")
    expect(wrong).to_contain_text("'w3 w4' is 2 tokens")
    fill(shown, PROMPT, HOSTILE)
    shown.keyboard.press("Enter")
    expect(wrong).to_contain_text("<img src=x")
    assert shown.evaluate("window.harmed") is None
    assert shown.locator("img").count() == 0
    fill(shown, "w3 " * 7000, "w6")
    shown.get_by_role("button", name="Trace").click()
    expect(wrong).to_contain_text("the prompt has 21,000 characters, more than the 20,000 that a page takes")
    fill(shown, PROMPT, "w7", "rest")
    shown.keyboard.press("Enter")
    expect(shown.locator(".says").first).to_contain_text("against all other words", timeout=60_000)
    expect(shown.locator(".ask .wrong")).to_be_hidden()


def test_cancel(shown: Page, tracer: Slow) -> None:
    """Progress is shown while it works; Cancel stops it and the next question is answered."""
    begun, ended = tracer.begun, tracer.ended
    fill(shown, "w3 w4 w5 w6 w7 w8 w9", "w6")
    shown.get_by_label("prompt", exact=True).press("Enter")
    status = shown.locator(".ask .status")
    expect(status).to_contain_text("neurons: 320 of 46,080 evaluated")
    expect(shown.get_by_role("button", name="Trace")).to_be_disabled()
    cancel = shown.get_by_role("button", name="Cancel")
    expect(cancel).to_be_focused()
    cancel.click()
    expect(status).to_have_text("stopped.")
    until = time.monotonic() + 5
    while tracer.ended == ended and time.monotonic() < until:
        time.sleep(0.05)
    assert (tracer.begun, tracer.ended) == (begun + 1, ended + 1)
    fill(shown, PROMPT, "w8")
    shown.get_by_label("target", exact=True).press("Enter")
    expect(shown.locator("h1")).to_have_text("Where does w8 come from?", timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_widths_and_colours(width: int, scheme: Any, chromium: Browser, site: tuple[str, Keys]) -> None:
    """Empty, with a sentence, with a trace: nothing runs out of the page, axe-core finds nothing serious."""
    address, keys = site
    options: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with chromium.page(f"{address}/?token={keys.token}", **options) as (shown, seen):
        assert violations(shown) == []
        fill(shown, PROMPT, "w3 w4")
        shown.keyboard.press("Enter")
        expect(shown.get_by_role("alert")).to_contain_text("2 tokens")
        fill(shown, PROMPT, "w6")
        assert violations(shown) == []
        shown.keyboard.press("Enter")
        expect(shown.locator("h1")).to_contain_text("w6", timeout=60_000)
        shown.get_by_text("asked before").click()
        assert violations(shown) == []
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        other = "dark" if scheme == "light" else "light"
        shown.get_by_label("colours").select_option(other)
        assert shown.evaluate("getComputedStyle(document.getElementById('ask')).colorScheme") == other
        assert seen.errors == []


def test_the_policy_holds(chromium: Browser, site: tuple[str, Keys]) -> None:
    """Text that did become markup runs nothing, and nothing beyond the loopback address is reached."""
    address, keys = site
    with chromium.page(f"{address}/?token={keys.token}") as (shown, seen):
        assert shown.evaluate("document.cookie") == ""
        assert shown.evaluate("fetch('https://example.org/').then(() => 'reached', () => 'refused')") == "refused"
        assert shown.evaluate("try { document.body.innerHTML = '<b>x</b>'; 'set' } catch { 'refused' }") == "refused"
        shown.evaluate(
            "() => { const one = document.createElement('iframe'); one.src = '/'; document.body.append(one); }"
        )
        assert shown.evaluate("window.harmed") is None
        assert seen.requests == []
    with chromium.page(f"{address}/") as (shown, _):
        assert shown.inner_text("body").startswith("no token: open the address")


@contextmanager
def explored(*arguments: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it shows."""
    program = [sys.executable, "-c", "from tl_subvalues.command.cli import main; main()", "explore"]
    process = subprocess.Popen(
        [*program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_the_command(tmp_path: Path) -> None:
    """It shows an address of the loopback, answers there, and ends by Ctrl-C without a traceback."""
    with explored("--model", tiny_folder(tmp_path / "tiny")) as (process, address):
        found = re.fullmatch(r"(http://127\.0\.0\.1:(\d+))/\?token=([\w-]{43})", address)
        assert found
        connection = http.client.HTTPConnection("127.0.0.1", int(found[2]), timeout=30)
        connection.request("GET", f"/?token={found[3]}")
        response = connection.getresponse()
        response.read()
        assert response.status == 303
        connection.request("GET", "/", headers={"Cookie": response.headers["Set-Cookie"].partition(";")[0]})
        page = connection.getresponse().read().decode()
        assert "<title>explore " in page
        assert run("explore", "--model", tmp_path / "tiny", "--port", found[2]) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip().splitlines() == ["tl-subvalues: stopped."]


def test_elsewhere_only_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address of this machine, with a warning; never all of them, and no name."""
    monkeypatch.setattr(server, "serve", lambda *_: None)
    monkeypatch.setattr(explore, "load", lambda *_: None)
    for host in ("0.0.0.0", "::"):
        assert run("explore", "--host", host) == 2
        assert f"{host} is every address of this machine" in capsys.readouterr().err
    assert run("explore", "--host", "example.org") == 2
    assert "--host takes an address of this machine, such as 127.0.0.1, got 'example.org'." in capsys.readouterr().err
    assert run("explore", "--host", "192.0.2.1") == 2  # of no machine (RFC 5737)
    assert "192.0.2.1 port 0 cannot be used" in capsys.readouterr().err
    assert run("explore") == 0
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(server, "is_loopback", lambda host: False)
    assert run("explore") == 0
    assert "warning: other machines reach 127.0.0.1; the connection is not encrypted" in capsys.readouterr().err


def test_another_address_is_a_host_beside_the_loopbacks() -> None:
    """What it is reached at, and no other."""
    keys = Keys("x")
    for host, taken in (("192.0.2.1", "192.0.2.1"), ("::1", "[::1]")):
        hosts = server.application(Session(Tracer(None)), "x", keys, host).user_middleware[0].kwargs["allowed_hosts"]
        assert set(hosts) == {"127.0.0.1", "localhost", "[::1]", taken}


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is loaded."""
    monkeypatch.setitem(sys.modules, "tl_subvalues.live.server", None)
    with pytest.raises(ImportError, match=r"pip install 'tl-subvalues\[explore\]'"):
        explore.explore_command.callback("nowhere", 0, "127.0.0.1", None, "float32")
