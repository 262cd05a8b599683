"""A trace in a notebook: the page's own view as a widget, whose questions a session answers in the kernel."""

from importlib.resources import files
from typing import Any

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError("the widget needs the package anywidget: pip install 'tl-subvalues[widget]'.") from error

from tl_subvalues.live.session import Session, Tracer
from tl_subvalues.show.html import module, style


class TraceWidget(anywidget.AnyWidget):
    """A trace beside its model; made by `Trace.widget`.

    Attributes:
        shown: the number of the trace that is shown, and its document.
    """

    _esm = module(files("tl_subvalues.live").joinpath("widget.js").read_text(encoding="utf-8"))
    _css = style()
    shown = traitlets.Dict().tag(sync=True)

    def __init__(self, traced: Any, tracer: Tracer) -> None:
        self._session = Session(tracer)
        super().__init__(shown=_shown(self._session.keep(traced)))
        self.on_msg(self._hear)

    @property
    def trace(self) -> Any:
        """The trace that is shown: the first, or that of the word which was clicked since."""
        return self._session.run(self.shown["trace"])

    def _hear(self, _: Any, content: Any, buffers: Any) -> None:
        """Answer a question of the page; a new trace goes to all that show this widget."""
        if not isinstance(content, dict) or "question" not in content:
            return
        answer = self._session.answer(content["question"])
        if "document" in answer:
            self.shown = _shown(answer)
            answer = {"trace": answer["trace"]}
        self.send({"id": content.get("id"), "answer": answer})

    def _ipython_display_(self) -> None:
        """The widget, and below it the summary that stays where no widget is: in exports, offline, on GitHub."""
        from IPython.display import HTML, display

        bundle = self._repr_mimebundle_()
        if bundle is not None:
            data, metadata = bundle
            display(data, metadata=metadata, raw=True)
        display(HTML(self.trace._repr_html_()))


def _shown(answer: dict[str, Any]) -> dict[str, Any]:
    return {"trace": answer["trace"], "document": answer["document"]}
