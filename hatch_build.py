"""README.md as a package index shows it, where a path inside the project leads nowhere.

With `source` set in pyproject.toml's [tool.hatch.metadata.hooks.custom] (where the repository is, such as
https://host/owner/tl-subvalues), links and pictures lead there, and the project has its addresses. Without it, as long
as the project has no address, links are their texts and pictures are left out.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LOCAL = r"(?!https?:|mailto:|#)[^)\s]+"


class Metadata(MetadataHookInterface):
    """Makes `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both to the project's metadata."""
        source = self.config.get("source", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_an_index(text, source)}
        metadata["urls"] = {"Paper": "https://arxiv.org/abs/2312.12141", **addresses(source)}


def addresses(source: str) -> dict[str, str]:
    """What a package index links to, once there is an address."""
    if not source:
        return {}
    changelog = f"{source}/blob/main/CHANGELOG.md"
    return {"Source": source, "Changelog": changelog, "Issues": f"{source}/issues"}


def for_an_index(text: str, source: str) -> str:
    """The README without links that lead nowhere: absolute, or none."""
    if source:
        text = re.sub(rf"!\[([^\]]*)\]\(({LOCAL})\)", rf"![\1]({source}/raw/main/\2)", text)
        return re.sub(rf"(?<!!)\[([^\]]*)\]\(({LOCAL})\)", rf"[\1]({source}/blob/main/\2)", text)
    text = re.sub(rf"!\[[^\]]*\]\({LOCAL}\)\n+", "", text)
    return re.sub(rf"\[([^\]]*)\]\({LOCAL}\)", r"\1", text)
