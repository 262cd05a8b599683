"""Every example of the documentation runs, and every local link leads somewhere."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import readme_blocks
from helpers.pages import ROOT, anchors, local_links, pages, shell_lines

from tl_subvalues.command import cli
from tl_subvalues.command.report import Report

pytestmark = pytest.mark.any_release

ELSEWHERE = {"README.md", "baevski18.md", "orders.md"}  # run in test_readme.py, and held to what they say


def runnable() -> list[Any]:
    """Pages with Python, marked by what their models need."""
    found = []
    for page in pages():
        blocks = "".join(readme_blocks.python_blocks(page))
        if not blocks or page.name in ELSEWHERE:
            continue
        marks = [pytest.mark.real_model, pytest.mark.slow] if "load_model()" in blocks else []
        marks += [pytest.mark.bridge] if "TransformerBridge" in blocks else []
        found.append(pytest.param(page, marks=marks, id=str(page.relative_to(ROOT))))
    return found


@pytest.mark.parametrize("page", runnable())
def test_its_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block, on the embedded model; "gpt2" is a tiny random one in a folder of that name."""
    monkeypatch.chdir(tmp_path)
    readme_blocks.make_tiny_gpt2(tmp_path / "gpt2")
    readme_blocks.run(page)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_its_commands_and_links_exist(page: Path) -> None:
    """Sub-commands with their options, make targets, files and headings."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in shell_lines(page):
        first, *rest = shlex.split(line)
        if first == "tl-subvalues":
            command = cli.cli.commands[rest[0]]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= known, line
        elif first == "make":
            assert re.search(rf"^{rest[0]}:", makefile, flags=re.MULTILINE), line
    for link, path, anchor in local_links(page):
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_the_json_s_keys_are_explained() -> None:
    """Every key of the command's JSON but the tables' stands on the page on files."""
    page = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    keys = {field.name for field in dataclasses.fields(Report)} - {"tables"}
    assert {key for key in keys if f"`{key}`" not in page} == set()
