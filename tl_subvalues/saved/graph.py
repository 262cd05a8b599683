"""The graph of a saved trace, without its model."""

from dataclasses import dataclass, field
from typing import Any

from tl_subvalues.saved.document import Document
from tl_subvalues.show import graph_plot
from tl_subvalues.show.attribution_graph import GraphTables, attribution_graph, write_graph


@dataclass(frozen=True, eq=False)
class SavedGraph(GraphTables):
    """The graph of a saved trace; as `tlsv.Graph`."""

    document: Document = field(repr=False)

    def to_json(self, path: Any, *, slug: str = "tl-subvalues") -> None:
        """Write the attribution-graph JSON that circuit-tracer's and Neuronpedia's viewers read; as `Graph.to_json`."""
        model, tokens, target = (self.document[name] for name in ("model", "tokens", "target"))
        made = attribution_graph(
            self.nodes, self.edges, slug=slug, model=model["name"], tokens=tokens["texts"], token_ids=tokens["ids"],
            target_id=target["ids"][0], prob=float(target["prob"]), n_layers=model["n_layers"],
        )  # fmt: skip
        write_graph(made, path)

    def plot(self, *, ax: Any = None) -> Any:
        """Positions from left to right, layers upwards; as `Graph.plot`."""
        return graph_plot.graph(self.nodes, self.edges, self.document["tokens"]["texts"], ax)

    def ablate(self) -> Any:
        """Refused: it runs the model.

        Raises:
            ValueError: always.
        """
        raise ValueError("graph().ablate needs the model, which a saved trace is without; ablate a graph of your own.")
