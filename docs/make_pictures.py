"""Draw the README's pictures: what `tl-subvalues trace` shows of the embedded real model, and one of the plots."""

from io import StringIO
from pathlib import Path

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


def main() -> None:
    """Trace the README's prompt; save the terminal's picture and what switched L24N1005 on."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    trace = tlsv.trace(tlsv.load_model(), "The capital of France is", " Paris")
    Path(__file__).with_name("trace.svg").write_text(terminal(trace), encoding="utf-8")
    ax = pyplot.subplots(figsize=(7, 3.6), layout="constrained")[1]
    trace.plot_activations("L24N1005", by="head_position", top=10, ax=ax)
    ax.figure.savefig(Path(__file__).with_name("activations.png"), dpi=110)


if __name__ == "__main__":
    main()
