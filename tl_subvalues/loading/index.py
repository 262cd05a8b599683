"""Where packages come from: the index that pip or uv is told of, else PyPI; read without running either."""

import base64
import configparser
import html.parser
import importlib.util
import json
import os
import ssl
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import platformdirs

_PYPI = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LONGEST_PAGE = 2**24  # bytes; the page of a package with a thousand files has 1 MB
_TIMEOUT = 60.0  # seconds without a byte


def index_urls() -> list[str]:
    """The indexes to ask, in order; none where pip is told to use none."""
    if (pip_setting("no-index") or "").lower() in ("1", "true", "yes", "on"):
        return []
    first = pip_setting("index-url") or os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL") or _PYPI
    return [first.strip(), *(pip_setting("extra-index-url") or "").split()]


def pip_setting(name: str) -> str | None:
    """One of pip's settings that hold for all its commands: from the environment, else from its configuration files."""
    value = os.environ.get(f"PIP_{name.replace('-', '_').upper()}")
    if value:
        return value
    found = configparser.RawConfigParser(strict=False)
    for path in _pip_files():
        try:
            found.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue  # pip says so itself; nothing here depends on it
    return found.get("global", name, fallback=None)


def _pip_files() -> list[Path]:
    """Configuration files of pip, the strongest last (pip.pypa.io, "Location")."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    dirs = platformdirs.PlatformDirs("pip", appauthor=False, roaming=True, multipath=True)
    name = "pip.ini" if os.name == "nt" else "pip.conf"
    files = [Path(folder) / name for folder in reversed(dirs.site_config_dir.split(os.pathsep))]
    home = Path.home()
    files += [Path("/etc") / name, home / ".pip" / name, home / ".config" / "pip" / name]
    files += [Path(dirs.user_config_dir) / name, Path(sys.prefix) / name]
    return [*files, Path(named)] if named else files


def opened(url: str) -> Any:
    """A response to read from; user and password in the URL go to its own host only.

    Raises:
        OSError: if it cannot be had.
        ValueError: for a URL of another kind than http, https and file.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https", "file"):
        raise ValueError(f"{without_password(url)} is no http, https or file URL")
    request = urllib.request.Request(without_password(url), headers={"Accept": _ACCEPT, "User-Agent": "tl-subvalues"})
    if parts.username is not None:
        user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
    return urllib.request.urlopen(request, timeout=_TIMEOUT, context=_trusted())


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _trusted() -> ssl.SSLContext:
    """The system's certificates, certifi's where it is installed (Python on macOS has no others), and pip's own."""
    context = ssl.create_default_context()
    if importlib.util.find_spec("certifi"):
        import certifi

        context.load_verify_locations(certifi.where())
    if own := pip_setting("cert") or os.environ.get("REQUESTS_CA_BUNDLE"):
        context.load_verify_locations(own)
    return context


def link_to(index: str, package: str, filename: str) -> str:
    """The address of a package's file, from the index's page of it (PEP 503 or 691).

    Raises:
        OSError: if the index cannot be read.
        ValueError: if its page has no such file.
    """
    page = f"{index.rstrip('/')}/{package}/"
    with opened(f"{page}index.html" if page.startswith("file:") else page) as response:
        content = response.read(_LONGEST_PAGE).decode(errors="replace")
        at, kind = getattr(response, "url", None) or page, response.headers.get("Content-Type", "")
    links = [file["url"] for file in json.loads(content)["files"]] if "json" in kind else _hrefs(content)
    for link in links:
        address = urllib.parse.urljoin(at, link).partition("#")[0]
        parts = urllib.parse.urlsplit(address)
        local = parts.scheme == "file" and not page.startswith("file:")  # no index elsewhere knows files here
        if urllib.parse.unquote(parts.path).rpartition("/")[2] == filename and not local:
            return _with_user_of(index, address)
    raise ValueError(f"{filename} is not on {without_password(page)}")


def _with_user_of(index: str, address: str) -> str:
    """A file's address with the index's user and password, if it is on the same host."""
    user, _, host = urllib.parse.urlsplit(index).netloc.rpartition("@")
    parts = urllib.parse.urlsplit(address)
    same = user and parts.netloc == host and parts.scheme == urllib.parse.urlsplit(index).scheme
    return parts._replace(netloc=f"{user}@{host}").geturl() if same else address


def _hrefs(page: str) -> list[str]:
    links: list[str] = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attributes if tag == "a" and name == "href" and value)

    Links().feed(page)
    return links
