"""The site: Sphinx with MyST-NB and furo; no network, no notebook run. `make docs` builds it into site/."""

import re
from pathlib import Path
from typing import Any

import tl_subvalues

HERE = Path(__file__).parent
DEMOS = HERE.parent / "demos"

project = "tl-subvalues"
author = "The tl-subvalues authors"
release = version = tl_subvalues.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build", "models/*.json"]

html_theme = "furo"
html_title = f"tl-subvalues {release}"
html_extra_path = ["llms.txt"]
html_copy_source = False

myst_heading_anchors = 3
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
smartquotes = False  # -- is an option, not a dash
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Docstrings write names as `trace`: a link where there is such a name, code where there is none.
default_role = "py:obj"


def setup(app: Any) -> None:
    """Notebooks come in from demos/; docstrings are plain text rather than reStructuredText."""
    app.connect("config-inited", take_in_notebooks)
    app.connect("source-read", lead_links_out)
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon, at 500


def take_in_notebooks(app: Any, config: Any) -> None:
    """Copy demos/*.ipynb beside the tutorials' page, their links to docs/ led one folder up."""
    for notebook in DEMOS.glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        copy = HERE / "tutorials" / notebook.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def lead_links_out(app: Any, page: str, source: list[str]) -> None:
    """Links out of docs/ as the repository has them: to notebooks, which are here too, and to pages, as downloads."""
    source[0] = re.sub(r"\]\((?:\.\./)+demos/([\w]+\.ipynb)\)", r"](/tutorials/\1)", source[0])
    source[0] = re.sub(r"\]\(((?:\.\./)+benchmarks/\w+\.md)\)", r"](path:\1)", source[0])
    source[0] = re.sub(r"\[([^\]]*)\]\((?:\.\./)+[\w/]*/\w+\)", r"\1", source[0])  # a folder


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """|m| and * are what they are, but for what stands in backticks and the bullets of lists."""
    if what == "property" and lines:  # napoleon takes what stands before a colon for a type
        lines[0] = lines[0].replace(": ", ", ")
    for number, line in enumerate(lines):
        bullet = re.match(r"\s*\* ", line)
        start = bullet.end() if bullet else 0
        parts = re.split(r"(`[^`]*`)", line[start:])
        escaped = [part if part.startswith("`") else re.sub(r"([|*])", r"\\\1", part) for part in parts]
        lines[number] = line[:start] + "".join(escaped)
