"""The site builds without a warning, names all that is public, leads nowhere that is not there, and fetches nothing."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers.pages import ROOT

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

INTERNAL = {
    "tl_subvalues.Trace": {
        "candidates",
        "reading",
        "run",
        "readout",
        "require_unchanged",
        "table",
        "target",
        "with_words",
    },
    "tl_subvalues.TraceBatch": {"traces"},
    "tl_subvalues.Graph": {"trace"},
}
ELSEWHERE = r'\bsrc="(?:https?:)?//|<link[^>]*rel="stylesheet"[^>]*//|url\(["\']?(?:https?:)?//'
PUBLIC_OF_READOUT = {"logits", "log_probs", "log_prob", "bs_values"}


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    """One build, for it takes some ten seconds."""
    site = tmp_path / "site"
    arguments = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees"), str(ROOT / "docs"), str(site)]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *arguments], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    _names_all_that_is_public(site)
    _links_lead_somewhere(site)
    _fetches_nothing(site)
    for page in re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8")):
        assert (site / page).is_file(), page


def _names_all_that_is_public(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    named = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    missing = public_names() - named
    assert not missing, f"docs/reference/ lacks {sorted(missing)}"


def public_names() -> set[str]:
    """Names of the package, and methods, properties and fields of its classes."""
    found = {f"tl_subvalues.{name}" for name in tlsv.__all__}
    for name in list(found):
        one = getattr(tlsv, name.rpartition(".")[2])
        if not inspect.isclass(one) or issubclass(one, Exception):
            continue
        members = {*vars(one), *getattr(one, "__annotations__", {})} - INTERNAL.get(name, set())
        members = PUBLIC_OF_READOUT if one is tlsv.Readout else {key for key in members if not key.startswith("_")}
        found |= {f"{name}.{member}" for member in members}
    return found


def _links_lead_somewhere(site: Path) -> None:
    """Files and anchors of all links and pictures that are not on the web."""
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in texts.items()}
    for page, text in texts.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:", link) or link == "#":
                continue
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            assert target.is_file(), (page.name, link)
            assert not anchor or target not in ids or anchor in ids[target], (page.name, link)


def _fetches_nothing(site: Path) -> None:
    """No script, style, font or picture from elsewhere; search and pictures work from a folder."""
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(
            r'\bsrc="(?:https?:)?//|<link[^>]*rel="stylesheet"[^>]*//|url\(["\']?(?:https?:)?//', text
        ), page
