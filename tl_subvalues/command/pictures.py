"""All pictures of a trace as files in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_subvalues.tracing.trace import Trace


def require_folder(folder: str) -> Path:
    """A folder for pictures, made if need be, and matplotlib without a screen.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is a file of that name, or the folder cannot be made.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'tl-subvalues[plots]'.") from error
    matplotlib.use("Agg")
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: no folder that pictures could be saved in ({error.strerror}).") from error
    return path


def save_all(trace: Trace, neuron: str | None, folder: Path) -> list[Path]:
    """Every picture of a trace as a PNG file; the activation scores are those of `neuron`."""
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
        saved.append(folder / f"{name}.png")
        figure.savefig(saved[-1], dpi=150)
        pyplot.close(figure)
    return saved
