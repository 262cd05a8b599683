"""Pictures as files: all of a trace in a folder, one of an evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from tl_subvalues.errors import shown
from tl_subvalues.show.plots import plot_evaluation
from tl_subvalues.tracing.trace import Trace


def require_folder(folder: str) -> Path:
    """A folder for pictures, made if need be, and matplotlib without a screen.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is a file of that name, or the folder cannot be made.
    """
    _matplotlib()
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{shown(folder)}: no folder that pictures could be saved in ({error.strerror}).") from error
    return path


def require_picture(file: str) -> Path:
    """The path of a picture that is to be saved, and matplotlib without a screen.

    Raises:
        ImportError: without matplotlib.
        ValueError: for another suffix than .png, .svg and .pdf, or a folder that does not exist.
    """
    path = Path(file)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{shown(file)}: a picture is a .png, .svg or .pdf file.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{shown(file)}: not a file, or the folder to write into does not exist.")
    _matplotlib()
    return path


def _matplotlib() -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'tl-subvalues[plots]'.") from error
    matplotlib.use("Agg")


def save_evaluation(table: pd.DataFrame, file: str) -> None:
    """The picture of an evaluation as a file."""
    save(plot_evaluation(table).figure, require_picture(file))


def save(figure: Any, path: Path) -> None:
    """A figure as a file of the kind that its suffix says; SVG has text that can be searched, and is the same anew."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def save_all(trace: Trace, neuron: str | None, folder: Path, form: str = "png") -> list[Path]:
    """Every picture of a trace as a file, PNG, SVG or PDF; the activation scores are those of `neuron`."""
    from matplotlib import pyplot

    drawn: dict[str, Callable[[], Any]] = {
        "layers": trace.plot_layers,
        "heads": trace.plot_heads,
        "neurons": trace.plot_neurons,
        "curve": trace.plot_curve,
    }
    if neuron is not None:
        drawn["activations"] = lambda: trace.plot_activations(neuron, by="head_position")
    saved = []
    for name, draw in drawn.items():
        figure = draw().figure
        saved.append(folder / f"{name}.{form}")
        save(figure, saved[-1])
        pyplot.close(figure)
    return saved
