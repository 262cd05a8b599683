"""A trace: one prompt and one target, and the tables that are made of its run on request."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.ablation.ablate import ablate
from tl_subvalues.decomposition.components import coefficients_of, through_head, written
from tl_subvalues.decomposition.parts import Parts
from tl_subvalues.decomposition.run import Run, Site
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.importance.curve import curve_of
from tl_subvalues.importance.increases import as_prob_increase
from tl_subvalues.importance.search import Candidates, Ranking, rank, require_top
from tl_subvalues.labels import PART_OF, Unit, labels_in, require_different, sublayer_label
from tl_subvalues.model_view import (
    ModelView,
    decode_each,
)
from tl_subvalues.numerics.blocks import in_full_precision
from tl_subvalues.readout.readout import Readout
from tl_subvalues.show.pictures import Pictures
from tl_subvalues.show.tables import (
    activation_table,
    coefficients_in,
    curve_table,
    query_table,
    ranked_table,
    value_neurons_in,
    vocabulary_table,
)
from tl_subvalues.upstream.activation import By, activation_scores
from tl_subvalues.upstream.query import query_scores

# Components read in vocabulary space at a time: 64 rows of 256,000 words are 64 MB.
_LABELS = 64


@dataclass(frozen=True)
class Prepared:
    """All parts of one kind of a trace: where they are added, what they are, and how they are scored."""

    unit: Unit
    sites: list[Site]
    parts: list[Parts]
    candidates: Candidates


@dataclass(frozen=True, eq=False)
class Trace(Pictures):
    """One prompt, one target, taken apart; made by `trace`. Tables are pandas DataFrames, labels TransformerLens's."""

    tokens: Int[Tensor, " pos"]
    str_tokens: list[str]
    target_id: int
    target_token: str
    position: int  # where the target is predicted, counted from the front
    log_prob: float  # of the target, in nats
    prob: float
    rank: int  # of the target among all words; 1 is the top
    scale: str
    model: Any = field(repr=False)
    cache: Any = field(repr=False)
    readout: Readout = field(repr=False)
    run: Run = field(repr=False)

    def layers(self) -> pd.DataFrame:
        """Every sublayer's output, in order of computation: columns label, layer, sublayer, and the two increases.

        In hybrid models, a convolution, state space or linear attention is a sublayer too, such as `0_conv_out`.
        """
        table = self._table("sublayer", None, True, False)
        order = {sublayer_label(site.layer, site.sublayer): i for i, site in enumerate(self._sites)}
        return table.sort_values("label", key=lambda labels: labels.map(order), ignore_index=True)

    def heads(self, top: int | None = None, *, largest: bool = True, show_progress: bool = False) -> pd.DataFrame:
        """Attention heads: columns label, layer, head, and the two increases, highest first."""
        return self._table("head", top, largest, show_progress)

    def head_positions(
        self, top: int | None = None, *, largest: bool = True, show_progress: bool = False
    ) -> pd.DataFrame:
        """Attention heads at one source position: columns label, layer, head, position, token, the two increases."""
        return self._table("head_position", top, largest, show_progress)

    def attn_neurons(self, top: int | None = 300, *, largest: bool = True, show_progress: bool = False) -> pd.DataFrame:
        """Attention neurons: columns label, layer, head, dim, position, token, coefficient, and the two increases."""
        return self._table("attn_neuron", top, largest, show_progress)

    def ffn_neurons(self, top: int | None = 300, *, largest: bool = True, show_progress: bool = False) -> pd.DataFrame:
        """FFN neurons: columns label, layer, neuron, coefficient, and the two increases, highest first.

        With mixtures of experts there is a column `expert` too, missing in dense layers; neurons of experts that the
        token is not sent to add nothing and are not listed, and coefficients include the routing weight.

        Raises:
            UnsupportedModelError: if a layer has no neurons that can be read, naming it.
        """
        return self._table("ffn_neuron", top, largest, show_progress)

    @in_full_precision
    def vocabulary(self, label: str | Sequence[str], k: int = 10, *, through: str | None = None) -> pd.DataFrame:
        """The tokens that a component writes and suppresses: columns side, rank, token, token_id, bs_value.

        A neuron is read by its W_out or W_O row, sign as stored: where its coefficient is negative, top and
        bottom change places. A head or a sublayer is read by its output at the trace's position. For several labels
        at once there is one more column, `label`, in front; for an adaptive softmax one more, `band`, the piece of the
        vocabulary that the word is in: what shifts a whole band moves its words' values and not their probabilities.

        `through` names a later head, or an attention neuron of it ("L23H4D38@3"): what is read then is what the
        component makes that head write, its row behind the head's norm, W_V and W_O.

        Raises:
            ValueError: if there is no such component, or if `through` names no later head.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is a positive number, got {k!r}.")
        labels = labels_in(label)
        self.run.require_same_weights()
        tables = []
        for name, values in zip(labels, self._bs_values(labels, through), strict=True):
            sides = {}
            for side, largest in (("top", True), ("bottom", False)):
                best = torch.topk(values, min(k, len(values)), largest=largest)
                ids = best.indices.tolist()
                sides[side] = (decode_each(self._view, ids), ids, best.values.tolist())
            tables.append(vocabulary_table(None if isinstance(label, str) else name, sides))
            if self.readout.n_bands > 1:
                tables[-1]["band"] = [self.readout.band(token) for token in tables[-1]["token_id"]]
        return pd.concat(tables, ignore_index=True)

    @in_full_precision
    def activations(self, label: str, by: By = "sublayer") -> pd.DataFrame:
        """What switched a neuron on: one row for each earlier component, columns label and score.

        First come the components that drove it most: those with the highest scores, or with the lowest where the scores
        add up to a negative number.

        The scores add up to a plain FFN neuron's pre-activation, an attention neuron's value, or a gated FFN neuron's
        coefficient (its gate held at this run's value; the columns `gate` and `up` add up to its two projections).
        What the neuron's own bias terms add is the row `bias`; `embed` and `pos_embed` are what enters layer 0.
        An attention neuron reads at its source position, and its components are those there.

        Args:
            label: an FFN neuron ("L24N1005") or an attention neuron ("L23H4D38@3").
            by: "sublayer", or what takes the sublayers apart: "head", "head_position" (a head at one source position),
                "ffn_neuron". Sublayers of the other kind stay whole, constant parts are rows such as `3_attn_bias`.

        Raises:
            ValueError: if the label names no neuron of this trace, or `by` no kind of component.
            UnsupportedModelError: if the scores would not add up, naming the layer.
        """
        self.run.require_same_weights()
        return activation_table(label, by, activation_scores(self.run, label, by))

    def query_layers(self, values: Any) -> pd.DataFrame:
        """Query scores of sublayers, `embed` and `pos_embed`: columns label, layer, sublayer, query_score.

        Args:
            values: value neurons, a table of `ffn_neurons` or `attn_neurons` of this trace.

        The query score of a component is the sum over the value neurons of their log-probability increase times the
        component's share in what they read (arXiv 2312.12141, section 3); over all rows here they add up to the sum of
        the increases. Value neurons whose scores add up to nothing are left out and named in `attrs["left_out"]`.
        Attention neurons read at their source positions, and a component's score is summed over those; for one position
        pass that position's rows alone, `values[values["position"] == 3]`.
        """
        return self._queries("sublayer", values, None)

    def query_heads(self, values: Any, top: int | None = None) -> pd.DataFrame:
        """Query scores of attention heads: columns label, layer, head, query_score. See `query_layers`."""
        return self._queries("head", values, top)

    def query_head_positions(self, values: Any, top: int | None = None) -> pd.DataFrame:
        """Query scores of heads at one source position; columns also position, token. See `query_layers`."""
        return self._queries("head_position", values, top)

    def query_ffn_neurons(self, values: Any, top: int | None = 300) -> pd.DataFrame:
        """Query neurons, the highest of all earlier FFN neurons: columns label, layer, neuron, query_score.

        See `query_layers`.
        """
        return self._queries("ffn_neuron", values, top)

    @in_full_precision
    def curve(self, table: Any) -> pd.DataFrame:
        """P and log p of the target as a table's subvalues are added one at a time: step, label, prob, log_prob.

        They are added in the table's order to the residual stream that the earliest sublayer among them reads, which is
        step 0. The curve of `layers()` runs from the embedding to the model's own output.
        """
        self.run.require_same_weights()
        labels = labels_in(table)
        require_different(labels)
        self._require_own(labels, coefficients_in(table))
        return curve_table(curve_of(self.run, self.readout, self.target_id, labels))

    @in_full_precision
    def _queries(self, unit: Unit, values: Any, top: int | None) -> pd.DataFrame:
        self.run.require_same_weights()
        top = require_top(top)
        labels, increases = value_neurons_in(values)
        self._require_own(labels, coefficients_in(values))
        return query_table(unit, query_scores(self.run, labels, increases, unit), top, self.str_tokens)

    def ablate(
        self, labels: Any, *, mode: str | float = "zero", position: int | None = None, reference: Any = None
    ) -> pd.Series:
        """The target's log_prob, prob and rank, `_before` and `_after`; arguments and errors as `ablation_hooks`."""
        return pd.Series(ablate(self._view, self, labels, mode, position, reference))

    def _require_own(self, labels: Sequence[str], coefficients: Sequence[float] | None) -> None:
        """Raise if a table's coefficients are not this run's: it is of another prompt or position."""
        if coefficients is None:
            return
        for label, own, given in zip(labels, coefficients_of(self.run, labels), coefficients, strict=True):
            if abs(own - given) > 1e-3 * abs(own) + 1e-6:
                raise ValueError(
                    f"the table is of another trace: {label!r} has the coefficient {given:.4g} there, {own:.4g} here."
                )

    def _bs_values(self, labels: Sequence[str], through: str | None) -> Iterator[Float[Tensor, " vocab"]]:
        """Bs-values of labelled components one by one, the vocabulary read once for every few of them."""
        for start in range(0, len(labels), _LABELS):
            names = labels[start : start + _LABELS]
            rows = [written(self.run, n) if through is None else through_head(self.run, n, through) for n in names]
            yield from self.readout.bs_values(torch.stack(rows))

    @property
    def _view(self) -> ModelView:
        return self.run.view

    @property
    def _sites(self) -> list[Site]:
        return self.run.sites

    @cached_property
    def _log_probs(self) -> tuple[Float[Tensor, "site _"], ...]:
        """The target's distributions at every sublayer's input."""
        return self.readout.class_log_probs(torch.stack([site.residual for site in self._sites]), self.target_id)

    @cached_property
    def _mean_columns(self) -> tuple[Float[Tensor, "site _"], ...]:
        """Expected readout columns at every sublayer's input, which the search's bounds need; all in one product."""
        return self.readout.mean_columns(self._log_probs, self.target_id) if self.readout.bounded else ()

    @in_full_precision
    def candidates(self, unit: Unit) -> "Prepared":
        """All parts of one kind, ready to be ranked; what every table starts from.

        Raises:
            UnsupportedModelError: if a layer has no such parts, naming all that have none.
        """
        self.run.require_same_weights()
        numbers = [i for i, site in enumerate(self._sites) if PART_OF[unit] in (None, site.sublayer)]
        sites = [self._sites[i] for i in numbers]
        parts = self._all_parts(sites, unit)
        found = Candidates(
            self.readout,
            self.target_id,
            torch.stack([site.residual for site in self._sites])[numbers],
            tuple(log_p[numbers] for log_p in self._log_probs),
            tuple(mean[numbers] for mean in self._mean_columns),
            [part.subvalues for part in parts],
        )
        return Prepared(unit, sites, parts, found)

    @in_full_precision
    def table(self, prepared: "Prepared", ranking: Ranking) -> pd.DataFrame:
        """A ranking of this trace's parts as a table, with its certificate in `attrs`."""
        base = prepared.candidates.base.cpu()[ranking.group]
        table = ranked_table(
            prepared.unit,
            [(site.layer, site.sublayer) for site in prepared.sites],
            [part.fields for part in prepared.parts],
            ranking.group.numpy(),
            ranking.index,
            self.str_tokens,
        )
        table["log_prob_increase"] = ranking.increase.numpy()
        table["prob_increase"] = as_prob_increase(ranking.increase, base).numpy()
        table.attrs["certificate"] = asdict(ranking.certificate)
        return table

    @in_full_precision
    def _table(self, unit: Unit, top: int | None, largest: bool, show_progress: bool) -> pd.DataFrame:
        prepared = self.candidates(unit)
        ranking = rank(prepared.candidates, top=top, largest=largest, show_progress=show_progress)
        return self.table(prepared, ranking)

    def _all_parts(self, sites: list[Site], unit: Unit) -> list[Parts]:
        """The parts of every site; one error that names all the layers that have none."""
        parts: list[Parts] = []
        refused: dict[int, UnsupportedModelError] = {}
        for site in sites:
            try:
                parts.append(self.run.parts(site, unit))
            except UnsupportedModelError as error:
                refused[site.layer] = error
        if refused:
            first = next(iter(refused.values()))
            more = f" The same holds for layers {', '.join(map(str, list(refused)[1:]))}." if len(refused) > 1 else ""
            raise UnsupportedModelError(f"{first}{more}") from first
        return parts
