"""A real browser for pages: Debian's chromium, led by Playwright, with no way out to any network."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
# `make test-new` puts it there.
AXE = Path(sys.prefix) / "page" / "axe.min.js"
_ARGUMENTS = [
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
]


@dataclass
class Seen:
    """What a page asked for, and what it complained of."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Browser:
    """Pages of their own context each: no storage, no history in common."""

    chromium: Any

    @contextmanager
    def page(self, url: str, **options: Any) -> Iterator[tuple[Page, Seen]]:
        """An open page, and what it does besides; all that it asks for but itself, or its own server, is refused.

        Args:
            url: of a file, or of a server on the loopback address.
            options: of the context, such as its viewport.
        """
        context = self.chromium.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        context.set_default_timeout(20_000)
        seen = Seen()
        served = re.match(r"http://127\.0\.0\.1:\d+/", url)
        own = url.partition("#")[0]

        def route(one: Any) -> None:
            asked = one.request.url
            if asked.startswith(served.group()) if served else asked.partition("#")[0] == own:
                one.continue_()
            else:
                seen.requests.append(one.request.url)
                one.abort()

        context.route("**/*", route)
        page = context.new_page()
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (seen.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        try:
            page.goto(url)
            yield page, seen
        finally:
            context.close()


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser; started once for many pages."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        try:
            yield Browser(chromium)
        finally:
            chromium.close()


def violations(page: Page, within: str = "html") -> list[str]:
    """Serious and critical findings of axe-core, on the page or in what a selector finds there."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("within => axe.run(within, {resultTypes: ['violations']})", within)["violations"]
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]} ({len(one['nodes'])})"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
