"""Draw docs/trace.svg, the README's picture: what `tl-subvalues trace` shows of the embedded real model."""

from io import StringIO
from pathlib import Path

from rich.console import Console

import tl_subvalues as tlsv
from tl_subvalues.report import make_report, print_rich


def main() -> None:
    """Trace the README's prompt and save the terminal's picture."""
    trace = tlsv.trace(tlsv.load_model(), "The capital of France is", " Paris")
    console = Console(record=True, width=112, file=StringIO())
    print_rich(make_report(trace, model="smollm2-135m", top=3), console)
    target = Path(__file__).with_name("trace.svg")
    console.save_svg(str(target), title='tl-subvalues trace "The capital of France is" --target " Paris" --top 3')


if __name__ == "__main__":
    main()
