"""The project's pages in Markdown: their code, their commands, their links and what those lead to."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """README and its like, and all of docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def shell_lines(page: Path) -> list[str]:
    """Lines of a page's sh blocks, those that go on as one, their comments left out."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines() if line]


def local_links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """What stands in a page's links to files of the project: as written, the file, the anchor ("" is none)."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        yield link, (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """Names of a page's headings as hosts and MyST make them: lower case, spaces to hyphens, punctuation left out."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
