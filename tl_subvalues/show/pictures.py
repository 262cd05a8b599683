"""The pictures of a trace: methods that make a table, draw it on an axes and return that."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from tl_subvalues.importance.search import require_top
from tl_subvalues.show import plots


class Pictures:
    """What `Trace` can draw. Needs matplotlib: pip install 'tl-subvalues[plots]'."""

    def plot_layers(self: Any, *, ax: Any = None) -> Any:
        """Bars: log-probability increase of every attention and FFN output, by layer."""
        return plots.layers(self.layers(), self._title(), _axes(ax))

    def plot_heads(self: Any, *, ax: Any = None) -> Any:
        """Heat map: log-probability increase of every head, by layer; the strongest carry their labels."""
        return plots.heads(self.heads(), self._title(), _axes(ax))

    def plot_neurons(self: Any, top: int = 300, *, ax: Any = None) -> Any:
        """Lines: in which layers the top value neurons are, and the top query neurons that switch them on."""
        values = [self.attn_neurons(top=top), self.ffn_neurons(top=top)]
        query = self.query_ffn_neurons(pd.concat(values, ignore_index=True), top=top)
        kinds = {"attention value neurons": values[0], "FFN value neurons": values[1], "FFN query neurons": query}
        layers = range(self.run.view.n_layers)
        counts = {name: table["layer"].value_counts().reindex(layers, fill_value=0) for name, table in kinds.items()}
        return plots.neurons_per_layer(pd.DataFrame(counts), f"{self._title()} (top {top})", _axes(ax))

    def plot_curve(self: Any, table: Any = None, *, ax: Any = None) -> Any:
        """Lines: log p and p as the rows of a table (by default `layers()`) are added one at a time."""
        return plots.curve(self.curve(self.layers() if table is None else table), self._title(), _axes(ax))

    def plot_activations(self: Any, label: str, by: str = "sublayer", top: int | None = 15, *, ax: Any = None) -> Any:
        """Bars: the components that drove a neuron most, and all others together."""
        return plots.activations(self.activations(label, by), self._title(), _axes(ax), require_top(top))

    def _title(self: Any) -> str:
        prompt = "".join(self.str_tokens[: self.position + 1])
        prompt = prompt if len(prompt) <= 40 else f"…{prompt[-39:]}"
        return f"{prompt!r} → {self.target_token!r}".replace("$", r"\$")  # a dollar sign opens mathematics


def _axes(ax: Any) -> Any:
    """The axes given, or a new figure's.

    Raises:
        ImportError: without matplotlib.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'tl-subvalues[plots]'.") from error
    return pyplot.subplots(figsize=(7, 4), layout="constrained")[1]


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


def save_all(trace: Pictures, neuron: str | None, folder: Path) -> list[Path]:
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
