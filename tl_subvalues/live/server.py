"""The server of `tl-subvalues explore`: one page, its script and its style, and questions to a session.

A question is the body of POST /ask; the answer is lines of JSON: {"step": what is worked on} until the last, which is
the session's answer. Who goes away before the end does not want it: the work stops at its next step.
"""

import asyncio
import ipaddress
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib.resources import files
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tl_subvalues.errors import told
from tl_subvalues.live.guard import Guard, Keys
from tl_subvalues.live.session import MOST_WAITING, Session, Stopped
from tl_subvalues.progress import watching
from tl_subvalues.show.html import module, style
from tl_subvalues.show.visible import plain

LARGEST_BODY = 1 << 20
LOOPBACK = "127.0.0.1"
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_OFTEN = 0.2  # seconds between two looks whether somebody still waits for the answer


def listening(host: str, port: int) -> socket.socket:
    """A socket at one address of this machine.

    Args:
        host: the address.
        port: 0 is any that is free.

    Raises:
        ValueError: for what is no address, for all addresses at once, and for a port that is taken.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ValueError(f"--host takes an address of this machine, such as {LOOPBACK}, got {host!r}.") from error
    if address.is_unspecified:
        raise ValueError(f"{host} is every address of this machine; name the one that explore is to be reached at.")
    made = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((str(address), port))
        made.listen(64)  # before the model is loaded, so that no other server takes the port meanwhile
    except (OSError, OverflowError) as error:
        made.close()
        raise ValueError(f"{host} port {port} cannot be used ({told(error)}); --port 0 takes a free one.") from error
    return made


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return ipaddress.ip_address(host).is_loopback


def address_of(opened: socket.socket) -> str:
    """http://127.0.0.1:8000 of a socket."""
    host, port = opened.getsockname()[:2]
    return f"http://{_in_address(host)}:{port}"


def serve(session: Session, name: str, opened: socket.socket, say: Callable[[str], None]) -> None:
    """Answer until Ctrl-C.

    Args:
        session: that answers.
        name: what the model is called.
        opened: where to listen.
        say: told the address with its token, once it can be opened.
    """
    keys = Keys(f"tl-subvalues-{opened.getsockname()[1]}")
    app = application(session, name, keys, opened.getsockname()[0])
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=2
    )
    say(f"{address_of(opened)}/?token={keys.token}")
    uvicorn.Server(config).run(sockets=[opened])


def application(session: Session, name: str, keys: Keys, host: str = LOOPBACK) -> Starlette:
    """The server's ASGI application; `host` is the address that it is reached at, besides those of the loopback."""
    asking = _Asking(session)
    script = module(_text("explore.js"))
    look = style() + _text("explore.css")

    async def index(request: Request) -> Response:
        return HTMLResponse(_PAGE.format(name=escape(plain(name))))

    async def explore_js(request: Request) -> Response:
        return Response(script, media_type="text/javascript")

    async def explore_css(request: Request) -> Response:
        return Response(look, media_type="text/css")

    routes = [
        Route("/", index),
        Route("/explore.js", explore_js),
        Route("/explore.css", explore_css),
        Route("/ask", asking.respond, methods=["POST"]),
    ]
    hosts = [*_HOSTS, _in_address(host)]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False), Middleware(Guard, keys=keys)]
    return Starlette(routes=routes, middleware=guards)


class _Asking:
    """Questions taken from requests, and their answers streamed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._workers = ThreadPoolExecutor(MOST_WAITING + 5, thread_name_prefix="explore")

    async def respond(self, request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return PlainTextResponse(f"a question has at most {LARGEST_BODY:,} bytes.", status_code=413)
        try:
            question = json.loads(body)
        except (ValueError, RecursionError):
            return PlainTextResponse("a question is an object of JSON.", status_code=400)
        return StreamingResponse(self._lines(request, question), media_type="application/x-ndjson")

    async def _lines(self, request: Request, question: Any) -> AsyncIterator[str]:
        loop, lines, gone = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]](), threading.Event()

        def put(line: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        def tell(what: str) -> None:
            if gone.is_set():
                raise Stopped
            put({"step": what})

        def work() -> None:
            try:
                with watching(tell):
                    put(self._session.answer(question))
            except (Stopped, RuntimeError):  # nobody waits; RuntimeError: the server's loop has ended meanwhile
                pass

        self._workers.submit(work)
        coming = loop.create_task(lines.get())
        try:
            while True:
                await asyncio.wait({coming}, timeout=_OFTEN)
                if not coming.done():
                    if await request.is_disconnected():
                        return
                    continue
                line = coming.result()
                yield json.dumps(line, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"
                if "step" not in line:
                    return
                coming = loop.create_task(lines.get())
        finally:
            coming.cancel()
            gone.set()


async def _body(request: Request) -> bytes | None:
    """A request's body; None where it is too large, however much of it came."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > LARGEST_BODY:
        return None
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > LARGEST_BODY:
            return None
    return bytes(found)


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _text(name: str) -> str:
    return files("tl_subvalues.live").joinpath(name).read_text(encoding="utf-8")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>explore {name} · tl-subvalues</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/explore.css">
<script type="module" src="/explore.js"></script>
</head>
<body>
<div id="ask" class="tlsv ask" data-model="{name}"></div>
<main id="trace" class="tlsv">
<noscript>This page needs JavaScript; tl-subvalues trace shows the same in the terminal.</noscript>
</main>
</body>
</html>
"""
