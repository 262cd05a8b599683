"""Who may ask the server: a browser that was given the address with its token, from the server's own page alone.

Any page on the web can make a browser send requests to a loopback address, and any program of the machine can connect
to it. So a request needs, besides a Host of ours (which Starlette's TrustedHostMiddleware holds it to):

* the key, a cookie that scripts cannot read and that no other site's page sends along; a browser gets it for the token
  of the first address, which a terminal shows;
* no Origin but the server's own, and where the browser says whose page asks, that it is this one;
* where it is to do something (POST), an Origin, and a header of our own, which no form and no other site's page can
  send without being allowed to: nothing here allows it (no CORS).
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

HEADER, SAID = "X-Tl-Subvalues", "explore"
# The page loads its script and its style from here, and asks nothing elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_ANSWERED_WITH = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_READING = ("GET", "HEAD")


@dataclass(frozen=True)
class Keys:
    """The secrets of one server.

    Attributes:
        cookie: the key's name; cookies are of a host, whatever the port, so it has the port in it.
        token: in the first address.
        key: the cookie's value.
    """

    cookie: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)


class Guard:
    """An ASGI application around another, which answers what may not pass with one sentence."""

    def __init__(self, app: Any, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or pass the request on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_ANSWERED_WITH)
            await send(message)

        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = self._answered(Request(scope))
        await (self._app if answer is None else answer)(scope, receive, sending)

    def _answered(self, request: Request) -> Response | None:
        headers = request.headers
        if request.url.path == "/" and request.method in _READING and "token" in request.query_params:
            if not _same(request.query_params["token"], self._keys.token):
                return _refused(
                    "this address is of another server, or of an earlier one: open the one in the terminal."
                )
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(self._keys.cookie, self._keys.key, path="/", httponly=True, samesite="strict")
            return answer
        if not _same(_cookie(headers, self._keys.cookie), self._keys.key):
            return _refused("no token: open the address that tl-subvalues explore shows in its terminal.")
        if not _from_here(headers, needed=request.method not in _READING):
            return _refused("asked from another page: questions are taken from this server's own page alone.")
        if request.method not in _READING and headers.get(HEADER) != SAID:
            return _refused(f"the header {HEADER} is missing: questions are taken from this server's own page alone.")
        return None


def _from_here(headers: Headers, needed: bool) -> bool:
    """Whether the server's own page asks, as far as a browser tells; its Host was held to ours before."""
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    return not needed if origin is None else origin == f"http://{headers.get('host')}"


def _cookie(headers: Mapping[str, str], name: str) -> str:
    found = SimpleCookie()
    try:
        found.load(headers.get("cookie", ""))
    except Exception:  # whatever it makes of what others send
        return ""
    return found[name].value if name in found else ""


def _same(given: str, own: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), own.encode())


def _refused(sentence: str) -> Response:
    return PlainTextResponse(sentence, status_code=403)
