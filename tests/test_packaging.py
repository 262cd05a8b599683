"""What a package index, a citation and a host are told: links that lead somewhere, one version, readable files."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import hatch_build  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
LOCAL = re.compile(r"\]\((?!https?:)([^)]+)\)")


def test_without_an_address_no_link_leads_nowhere() -> None:
    """Links into the project become their texts, pictures go, and all else stays."""
    shown = hatch_build.for_an_index(README, "")
    assert LOCAL.search(README)
    assert not LOCAL.search(shown)
    assert "![" not in shown
    assert "[TransformerLens](https://github.com/" in shown
    assert "another model, contrasts, total effects" in shown
    assert hatch_build.addresses("") == {}


def test_with_an_address_links_and_pictures_lead_there() -> None:
    """Every one of them, to the file that it names."""
    shown = hatch_build.for_an_index(README, "https://host.example/us/it")
    assert not LOCAL.search(shown)
    pictures = re.findall(r"!\[[^\]]*\]\(https://host\.example/us/it/raw/main/([^)]+)\)", shown)
    links = re.findall(r"(?<!!)\[[^\]]*\]\(https://host\.example/us/it/blob/main/([^)]+)\)", shown)
    assert pictures == ["docs/trace.svg"]
    assert len(pictures) + len(links) == len(LOCAL.findall(README))
    assert all((ROOT / path).exists() for path in pictures + links)


def test_the_citation_is_of_this_version() -> None:
    """And names the paper."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == tlsv.__version__
    assert "2312.12141" in citation["references"][0]["url"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_what_the_host_reads_is_yaml(path: Path) -> None:
    """Workflows call what is there."""
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert read["name"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for job in read.get("jobs", {}).values():
        for step in job["steps"]:
            if step.get("run", "").startswith("make "):
                assert re.search(rf"^{step['run'].split()[1]}:", makefile, flags=re.MULTILINE)
            if step.get("run", "").startswith(".ci/"):
                assert (ROOT / step["run"]).exists()
