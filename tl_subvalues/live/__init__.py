"""A trace beside its model: the server of `tl-subvalues explore`, the widget, and the session that answers for both.

May import show and saved. It makes no trace itself: a session asks a tracer, which `tl_subvalues.tracing` gives it.
Starlette and uvicorn (the extra `explore`) are imported in `guard` and `server` alone, anywidget (the extra `widget`)
in `widget`.
"""
