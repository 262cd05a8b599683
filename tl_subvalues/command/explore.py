"""`tl-subvalues explore`: a page to ask a model from, served to this machine's browser."""

import click

from tl_subvalues.command.options import DEVICE, DTYPE, MODEL, options
from tl_subvalues.command.start_up import load, quieten, say


@click.command("explore")
@options(
    MODEL,
    click.option(
        "--port", default=0, metavar="N", type=click.IntRange(0, 65535), help="Where to serve; 0: a free one."
    ),
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="Serve at another address of this machine: then other machines reach it too, unencrypted, and whoever has "
        "the address with its token can make the model work.",
    ),
    DEVICE,
    DTYPE,
)
def explore_command(name: str, port: int, host: str, device: str | None, dtype: str) -> None:
    """Ask a model from a page in the browser: a prompt, its target, what it is against; click what you want to know.

    Open the address that is shown: its token lets your browser in, and nobody else's. Ctrl-C ends it.
    """
    try:
        from tl_subvalues.live.server import is_loopback, listening, serve  # before the model, which takes seconds
    except ImportError as error:
        raise ImportError("the page needs starlette and uvicorn: pip install 'tl-subvalues[explore]'.") from error
    opened = listening(host, port)
    from tl_subvalues.live.session import Session
    from tl_subvalues.tracing.tracer import Tracer

    if not is_loopback(host):
        say(
            f"warning: other machines reach {host}; the connection is not encrypted, and whoever has the address with "
            "its token can make the model work. Without --host, only this machine reaches it."
        )
    quieten(progress=False)
    session = Session(Tracer(load(name, device, dtype)))
    serve(session, name, opened, lambda address: click.echo(address))
