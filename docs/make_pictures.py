"""Draw the README's pictures: what `tl-subvalues trace` shows of the embedded real model, and one of the plots."""

from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
from rich.console import Console

import tl_subvalues as tlsv
from tl_subvalues.command.report import make_report
from tl_subvalues.command.screen import print_rich


def terminal(trace: tlsv.Trace) -> str:
    """What the command shows of a trace, as SVG."""
    console = Console(record=True, width=112, file=StringIO())
    print_rich(make_report(trace, model="smollm2-135m", top=3), console)
    return console.export_svg(title='tl-subvalues trace "The capital of France is" --target " Paris" --top 3')


def activations(trace: tlsv.Trace, picture: Path) -> None:
    """What switched L24N1005 on."""
    from matplotlib import pyplot

    ax = pyplot.subplots(figsize=(7, 3.6), layout="constrained")[1]
    trace.plot_activations("L24N1005", by="head_position", top=10, ax=ax)
    ax.figure.savefig(picture, dpi=110)


def page(trace: tlsv.Trace, picture: Path) -> None:
    """The top of the page with two parts pinned, as a browser shows it, in 128 colours."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "trace.html"
        trace.to_html(file)
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        shown = chromium.new_page(viewport={"width": 1400, "height": 1060})
        shown.goto(f"{file.as_uri()}#pins=L24N1005,L23H4@3")
        shown.screenshot(path=picture)
        chromium.close()
    Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(picture, optimize=True)


def main() -> None:
    """Trace the README's prompt; save the terminal's picture, what switched L24N1005 on, and the page's."""
    matplotlib.use("Agg")
    trace = tlsv.trace(tlsv.load_model(), "The capital of France is", " Paris")
    Path(__file__).with_name("trace.svg").write_text(terminal(trace), encoding="utf-8")
    activations(trace, Path(__file__).with_name("activations.png"))
    page(trace, Path(__file__).with_name("page.png"))


if __name__ == "__main__":
    main()
