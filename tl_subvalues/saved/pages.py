"""What every trace can do with its document, whether it was just made or opened from a file: pages and files."""

from typing import Any

from tl_subvalues.errors import shown
from tl_subvalues.paths import named_path
from tl_subvalues.saved import files
from tl_subvalues.saved.document import Document, cut
from tl_subvalues.show.html import page, summary

# Words on a page, a side and part.
WORDS = 6
_BRIEF = 5


class Pages:
    """A trace to look at and to keep; what it consists of is a document."""

    def _document(self, top: int) -> Document:
        raise NotImplementedError

    def _brief(self) -> Document:
        """What a summary shows."""
        return cut(self._document(_BRIEF), _BRIEF, WORDS)

    def to_html(self, path: Any = None, *, top: int = 50) -> str:
        """The trace as a page: one file that opens offline, asks for nothing elsewhere, and explains itself.

        Shows the prompt and the prediction; layers, heads and neurons with what they write; the curve, the graph, and
        what switched the top neurons on. The parts that are marked by a click are in the address, to be sent along.

        Args:
            path: None, or a file to write it to.
            top: rows of each table.

        Returns:
            The page.

        Raises:
            ValueError: if the file's folder does not exist.
        """
        require_file(path)
        made = page(cut(self._document(require_rows(top)), top, WORDS))
        if path is not None:
            named_path(path).write_text(made, encoding="utf-8")
        return made

    def save(self, path: Any, *, top: int = 300) -> None:
        """Write the trace without its model, for `tlsv.open_trace`: a new folder, or a file ending in .zip.

        It holds `trace.json` (all there is), `page.html` (the same to look at) and every table as Parquet; no pickle.

        Args:
            path: the folder or the .zip file; one of an earlier trace is replaced.
            top: rows of each table.

        Raises:
            ValueError: if something else is there, or the folder around it is not.
        """
        files.require_target(path)
        document = self._document(require_rows(top))
        files.write(path, document, page(cut(document, min(top, 50), WORDS)))

    def _repr_html_(self) -> str:
        """A summary without scripts, which notebooks keep wherever they are shown."""
        return summary(self._brief())


def require_rows(top: int) -> int:
    """A positive number of rows.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"top is a positive number of rows, got {top!r}.")
    return top


def require_file(path: Any) -> None:
    """Raise before the work where a page could not be written.

    Raises:
        ValueError: for a folder, or a file in a folder that does not exist.
    """
    if path is None:
        return
    target = named_path(path)
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ValueError(f"{shown(path)}: not a file, or the folder to write into does not exist.")
