"""A trace: one prompt and one target, and the tables that are made of its run on request."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, SupportsFloat, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from tl_subvalues.ablation.ablate import ablate
from tl_subvalues.decomposition.components import require_own
from tl_subvalues.decomposition.run import Run
from tl_subvalues.importance.candidates import Candidates, Ranked
from tl_subvalues.importance.curve import curve_of
from tl_subvalues.importance.search import rank, require_top
from tl_subvalues.labels import Unit, labels_in, parse_label, require_different, sublayer_label
from tl_subvalues.model_view import decode_each
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.readout.reading import Known, Reading, TargetAt, read_together
from tl_subvalues.readout.readout import Readout, Scale
from tl_subvalues.readout.targets import Measure, Target
from tl_subvalues.saved.document import Document
from tl_subvalues.saved.pages import Pages, require_rows
from tl_subvalues.show import plots
from tl_subvalues.show.tables import (
    activation_table,
    coefficients_in,
    curve_table,
    query_table,
    ranked_table,
    value_neurons_in,
)
from tl_subvalues.show.word_tables import vocabulary_table, writes_table
from tl_subvalues.tracing.compare import compare
from tl_subvalues.tracing.effect_tables import effect_tables
from tl_subvalues.tracing.finish import document_of
from tl_subvalues.tracing.graph import Graph, GraphRule, graph_of
from tl_subvalues.tracing.prediction import ablate_each
from tl_subvalues.upstream.activation import By, activation_scores
from tl_subvalues.upstream.effects import EffectPositions, EffectUnit, Wanted
from tl_subvalues.upstream.led_back import EffectRule
from tl_subvalues.upstream.query import query_scores
from tl_subvalues.words.readings import By as ReadBy
from tl_subvalues.words.vocabulary import Words, vocabulary, writes


@dataclass(frozen=True, eq=False)
class Trace(Pages):
    """One prompt, one target, taken apart; made by `trace`. Tables are pandas DataFrames, labels TransformerLens's.

    Attributes:
        tokens: token ids of the prompt.
        str_tokens: their texts.
        target_tokens: texts of the target's words.
        position: where the target is predicted, counted from the front.
        log_prob: of the target (of several words: of any of them), in nats.
        prob: of the target.
        rank: of the target's most probable word among all; 1 is the top.
        value: the target's measure, in nats: `log_prob`, or with an `against` `log_prob_diff`.
        scale: "frozen" or "recomputed".
        model: the model that was traced.
        cache: the run's ActivationCache.
    """

    tokens: Int[Tensor, " pos"]
    str_tokens: list[str]
    target: Target
    target_tokens: list[str]
    position: int
    log_prob: float
    prob: float
    rank: int
    value: float
    scale: Scale
    model: Any = field(repr=False)
    cache: Any = field(repr=False)
    readout: Readout = field(repr=False)
    run: Run = field(repr=False)

    @property
    def target_id(self) -> int:
        """The target's token id, of several the first."""
        return self.target.first

    @property
    def target_token(self) -> str:
        """The target's text, of several the first."""
        return self.target_tokens[0]

    @property
    def target_ids(self) -> list[int]:
        """Token ids of all the target's words."""
        return list(self.target.ids)

    @property
    def against_tokens(self) -> list[str] | Literal["rest"] | None:
        """Texts of what the target is measured against, "rest", or nothing."""
        ids = self.against_ids
        return decode_each(self.run.view, ids) if isinstance(ids, list) else ids

    @property
    def against_ids(self) -> list[int] | Literal["rest"] | None:
        """What the target is measured against: token ids, "rest", or nothing."""
        return self.target.against_ids

    @property
    def measure(self) -> Measure:
        """What is measured, in nats: "log_prob", or "log_prob_diff" where there is an `against`."""
        return self.target.measure

    @property
    def log_prob_diff(self) -> float | None:
        """log p(target) − log p(against), in nats; None without an `against`."""
        return self.value if self.measure == "log_prob_diff" else None

    def layers(self, *, words: int | None = None) -> pd.DataFrame:
        """Every sublayer's output, in order of computation: columns label, layer, sublayer, and the two increases.

        In hybrid models, a convolution, state space or linear attention is a sublayer too, such as `0_conv_out`.
        Here as in the other tables, `words=k` adds a column `writes`: the k words of each row that `writes` gives.
        """
        table = self._table("sublayer", None, words=words)
        order = {sublayer_label(site.layer, site.sublayer): i for i, site in enumerate(self.run.sites)}
        return table.sort_values("label", key=lambda labels: labels.map(order), ignore_index=True)

    def heads(
        self,
        top: int | None = None,
        *,
        largest: bool = True,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """Attention heads: columns label, layer, head, and the two increases, highest first."""
        return self._table("head", top, largest, words, show_progress)

    def head_positions(
        self,
        top: int | None = 300,
        *,
        largest: bool = True,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """Attention heads at one source position: columns label, layer, head, position, token, the two increases."""
        return self._table("head_position", top, largest, words, show_progress)

    def attn_neurons(
        self,
        top: int | None = 300,
        *,
        largest: bool = True,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """Attention neurons: columns label, layer, head, dim, position, token, coefficient, and the two increases."""
        return self._table("attn_neuron", top, largest, words, show_progress)

    def ffn_neurons(
        self,
        top: int | None = 300,
        *,
        largest: bool = True,
        words: int | None = None,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """FFN neurons: columns label, layer, neuron, coefficient, and the two increases, highest first.

        With mixtures of experts there is a column `expert` too, missing in dense layers; neurons of experts that the
        token is not sent to add nothing and are not listed, and coefficients include the routing weight.

        Raises:
            UnsupportedModelError: if a layer has no neurons that can be read, naming it.
        """
        return self._table("ffn_neuron", top, largest, words, show_progress)

    @no_autocast_no_grad
    def vocabulary(
        self, label: str | Sequence[str], k: SupportsIndex = 10, *, by: ReadBy = "bs_value", through: str | None = None
    ) -> pd.DataFrame:
        """The words at the top and the bottom of a component: columns side, rank, token, token_id and the value.

        A neuron is read by its W_out or W_O row, sign as stored: where its coefficient is negative, top and bottom
        change place (`writes` minds that). A head or a sublayer is read by its output at the trace's position. For
        several labels at once there is one more column, `label`, in front; for an adaptive softmax one more, `band`,
        the piece of the vocabulary that the word is in.

        Args:
            label: a component, or several.
            k: words a side.
            by: "bs_value", the logit that the row adds to a word (what shifts a whole band of an adaptive softmax moves
                its words' values and not their probabilities); "cosine", of the row behind the final norm's linear part
                with the word's readout column as seen from the mean of its band's columns; "prob_increase", what the
                component does to the word's probability in this run, sign and coefficient included. The value's column
                is called so.
            through: a later head, or an attention neuron of it ("L23H4D38@3"): what is read then is what the component
                makes that head write, its row behind the head's norm, W_V and W_O.

        Raises:
            ValueError: if there is no such component or reading, or if `through` names no later head.
            UnsupportedModelError: for cosines where the unembedding can only be called.
        """
        k, labels = whole_number(k, "k"), labels_in(label)
        self.run.require_unchanged()
        words = vocabulary(self.run, self.readout, labels, k, by, through)
        return vocabulary_table(words, by, with_label=not isinstance(label, str))

    @no_autocast_no_grad
    def writes(self, labels: Any, k: SupportsIndex = 5, *, by: ReadBy = "cosine") -> pd.DataFrame:
        """The words that components write in this run: columns label, rank, token, token_id and the value.

        In this run's sign: a neuron is read by its row times its coefficient, everything else by its output. What adds
        nothing here writes nothing, and has no rows.

        Args:
            labels: a label, a list of labels, or a table with a column `label`.
            k: words of each.
            by: as in `vocabulary`; the value's column is called so.

        Raises:
            ValueError: if there is no such component or reading, or the table is of another trace.
            UnsupportedModelError: for cosines where the unembedding can only be called.
        """
        return writes_table(self._writes(labels, whole_number(k, "k"), by), by)

    def _writes(self, labels: Any, k: int, by: ReadBy) -> Iterator[Words]:
        self.run.require_unchanged()
        named = labels_in(labels)
        if all(parse_label(label).at is None for label in named):
            require_own(self.run, named, coefficients_in(labels))
        return writes(self.run, self.readout, named, k, by)

    @no_autocast_no_grad
    def with_words(self, table: pd.DataFrame, words: int | None) -> pd.DataFrame:
        """A table of this trace with the words of each row as a column `writes`; as it is where none are asked for."""
        if words is not None:
            k = whole_number(words, "words")
            table["writes"] = [row.tokens for row in self._writes(table, k, "cosine")] if len(table) else []
        return table

    @no_autocast_no_grad
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
        self.run.require_unchanged()
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

    @no_autocast_no_grad
    def effects(
        self,
        unit: EffectUnit = "ffn_neuron",
        *,
        top: int | None = 300,
        positions: EffectPositions = "all",
        rule: EffectRule = "gradient",
        largest: bool | None = None,
        words: int | None = None,
    ) -> pd.DataFrame:
        """What parts do through the rest of the model: direct_effect beside total_effect, in nats, at all positions.

        A subvalue's increase says what it does at once. Its total effect follows it through all later layers:

        * rule "gradient": its vector times the true gradient of the measure where it is added. It predicts what taking
          that one part out does (of FFN neurons, rank correlation 0.96 to 0.99 with ablation on SmolLM2-135M, positions
          that are no attention sinks) and adds up to nothing. Behind a post-norm it is the gradient of z or of the
          coefficient: the norm's scale moves too, and what a sublayer's parts do together vanishes.
        * rules "frozen" and "half": with this run's attention patterns, norms' scales and gates held ("half": half of a
          gated neuron's effect through its gate). What the output consists of: the effects of embeddings and bias terms
          (unit "embedding") add up to `attrs["score"]`, ⟨x_final, γ_final⟩. They predict ablation worse (0.5 to 0.9).

        The direct effect is ⟨what it adds, γ_final⟩ at the trace's position and 0 elsewhere, γ_final the gradient with
        respect to the final residual stream, its norm's scale held. All direct effects add up to the score;
        `attrs["direct_left_out"]` is the score less the rows'.

        Args:
            unit: "sublayer", "head", "head_position", "attn_neuron", "ffn_neuron", or "embedding".
            top: how many rows; None is all.
            positions: "all", or "last" for what is added at the trace's own position.
            rule: which question is asked.
            largest: None orders by |total_effect|, True has the most positive first, False the most negative.
            words: one more column, `writes`: as many words of each row, as in the other tables.

        Returns:
            label (such as L11N1229@0, L11H2@1>3), layer, …, position, token, coefficient where there is one,
            direct_effect, total_effect, and `sink`: whether the position is an attention sink, whose parts may
            do far more or less than predicted, or the opposite.

        Raises:
            UnsupportedModelError: naming a layer that nothing can be led back through.
            ValueError: for an unknown unit, rule or positions; for words of embeddings.
        """
        return effect_tables([self], Wanted(unit, rule, positions, require_top(top), largest), words)[0]

    def compare(self, other: "Trace", unit: Unit = "head", top: int | None = 300) -> pd.DataFrame:
        """Another trace of this model beside this one, another prompt or another target, component by component.

        Columns label, layer and so on, increase, increase_other (nats) and difference (increase − increase_other), the
        largest |difference| first; of what reads a source position also token and token_other. What one of the traces
        has not (an idle expert, a position that its prompt does not reach) is NaN there, and stands last.

        Args:
            other: the other trace.
            unit: "sublayer" or "head", of which all are compared; "head_position", "attn_neuron" or "ffn_neuron", of
                which those are that are among the highest of either trace, each evaluated exactly in both.
            top: how many of each trace; None is all.

        Raises:
            ValueError: for traces of two models or of two measures, an unknown unit, and a `top` that is no number.
            UnsupportedModelError: as the table of the unit.
        """
        return compare((self, other), unit, top)

    @no_autocast_no_grad
    def graph(self, *, nodes: SupportsIndex = 64, edges: float = 0.98, rule: GraphRule = "frozen") -> Graph:
        """What fed the output: the strongest FFN neurons at positions, what each added to later ones, and through what.

        An edge is exact in the frozen model: what its source adds to its target's coefficient (to the score, for the
        target) through attention and norms, other FFN neurons cut. It says what a coefficient consists of, not what
        happens without the source; `Graph.ablate` measures that.

        Args:
            nodes: how many neurons, by |total_effect| under the rule.
            edges: the share of influence on the target that edges are kept for; the rest counts among "others".
            rule: "frozen" or "half", as in `effects`.

        Raises:
            UnsupportedModelError: as `effects`.
            ValueError: for nodes, edges or a rule that is none.
        """
        self.run.require_unchanged()
        return graph_of(self, nodes, edges, rule)

    @no_autocast_no_grad
    def ablate_each(self, table: Any) -> pd.DataFrame:
        """Each row's component set to zero by itself: its measured effect beside the predicted one.

        Takes a table of `effects`, or labels. Columns label, direct_effect, total_effect, measured_effect, self_repair
        (later layers make up for more than half of the direct effect); `attrs` has correlation and rank_correlation of
        prediction and measurement, positions that are attention sinks left out, and the effect of all `together`.
        """
        return ablate_each(self, table)

    @no_autocast_no_grad
    def curve(self, table: Any) -> pd.DataFrame:
        """p and log p of the target as a table's subvalues are added one at a time: step, label, prob, log_prob.

        They are added in the table's order to the residual stream that the earliest sublayer among them reads, which is
        step 0. The curve of `layers()` runs from the embedding to the model's own output.
        """
        self.run.require_unchanged()
        labels = labels_in(table)
        require_different(labels)
        require_own(self.run, labels, coefficients_in(table))
        curves = [(target, curve_of(self.run, self._reading(target), labels)) for target in self.target.shown]
        return curve_table(curves)

    @no_autocast_no_grad
    def _queries(self, unit: Unit, values: Any, top: int | None) -> pd.DataFrame:
        self.run.require_unchanged()
        top = require_top(top)
        labels, increases = value_neurons_in(values, self.target.column)
        require_own(self.run, labels, coefficients_in(values))
        return query_table(unit, query_scores(self.run, labels, increases, unit), top, self.str_tokens)

    def ablate(
        self,
        labels: Any,
        *,
        mode: str | SupportsFloat = "zero",
        position: SupportsIndex | None = None,
        reference: Any = None,
    ) -> pd.Series:
        """The target's log_prob, prob and rank, `_before` and `_after`; arguments and errors as `ablation_hooks`."""
        return pd.Series(ablate(self.run.view, self, labels, mode, position, reference))

    def plot_layers(self, *, ax: Any = None) -> Any:
        """Bars: increase of every sublayer's output, by layer."""
        return plots.layers(self.layers(), self._title(), ax)

    def plot_heads(self, *, ax: Any = None) -> Any:
        """Heat map: log-probability increase of every head, by layer; the strongest carry their labels."""
        return plots.heads(self.heads(), self._title(), ax)

    def plot_neurons(self, top: int = 300, *, ax: Any = None) -> Any:
        """Lines: in which layers the top value neurons are, and the top query neurons that switch them on."""
        values = [self.attn_neurons(top=top), self.ffn_neurons(top=top)]
        query = self.query_ffn_neurons(pd.concat(values, ignore_index=True), top=top)
        kinds = {"attention value neurons": values[0], "FFN value neurons": values[1], "FFN query neurons": query}
        return plots.neurons_per_layer(kinds, self.run.view.n_layers, f"{self._title()} (top {top})", ax)

    def plot_curve(self, table: Any = None, *, ax: Any = None) -> Any:
        """Lines: log p and p as the rows of a table (by default `layers()`) are added one at a time."""
        return plots.curve(self.curve(self.layers() if table is None else table), self._title(), ax)

    def plot_compare(self, other: "Trace", unit: Unit = "head", top: int | None = 15, *, ax: Any = None) -> Any:
        """Bars: the components that differ most between two traces of this model, in both. See `compare`."""
        number = require_top(top)
        table = self.compare(other, unit, None if number is None else max(300, number))
        return plots.compare(table, (self._title(), other._title()), ax, number)

    def plot_activations(self, label: str, by: By = "sublayer", top: int | None = 15, *, ax: Any = None) -> Any:
        """Bars: the components that drove a neuron most, and all others together."""
        return plots.activations(self.activations(label, by), self._title(), ax, require_top(top), self.str_tokens)

    def widget(self, *, top: int = 50) -> Any:
        """The trace in a notebook, beside its model: the page of `to_html`, whose clicks ask the model.

        Pinning a part asks for what the page does not hold: its words, what switched it on, its measured ablation; any
        part can be named by its label. Clicking another word that the model would say traces that one through the same
        run; `widget.trace` is then its trace. Below it stands the summary of `_repr_html_`, which exports keep.

        Args:
            top: rows of each table.

        Raises:
            ImportError: without anywidget: pip install 'tl-subvalues[widget]'.
        """
        from tl_subvalues.live.widget import TraceWidget
        from tl_subvalues.tracing.tracer import Tracer

        return TraceWidget(self, Tracer(self.model, require_rows(top)))

    def _document(self, top: int) -> Document:
        return document_of(self, top)

    def _brief(self) -> Document:
        return document_of(self, 5, brief=True)

    def _title(self) -> str:
        prompt = "".join(self.str_tokens[: self.position + 1])
        return plots.title(prompt, self.target_tokens, self.against_tokens)

    @cached_property
    def reading(self) -> Reading:
        """The target at every sublayer's input: what increases are measured from."""
        return self._reading(self.target)

    @no_autocast_no_grad
    def require_unchanged(self) -> None:
        """Raise if the model's weights or the run's activations were written to since, by whatever way the readout's.

        Raises:
            ValueError: if they were.
        """
        self.run.require_unchanged()
        self.reading.at(self.run.activations.final_residual(self.position)[:1])  # which it holds to the run's

    def _reading(self, target: Target) -> Reading:
        return read_together([self._target_at(target)])[0]

    @property
    def target_at(self) -> TargetAt:
        """What `reading` is made of."""
        return self._target_at(self.target)

    def _target_at(self, target: Target) -> TargetAt:
        """A target at every sublayer's input, to be held against the run's own last residual stream."""
        final = self.run.activations.final_residual(self.position)[0]
        known = Known(final, self.value if target == self.target else self.log_prob)
        return TargetAt(self.readout, target, torch.stack([site.residual for site in self.run.sites]), known)

    @no_autocast_no_grad
    def candidates(self, unit: Unit) -> Candidates:
        """All parts of one unit, ready to be ranked; what every table starts from.

        Raises:
            UnsupportedModelError: if a layer has no such parts, naming all that have none.
        """
        self.run.require_unchanged()
        return Candidates(self.reading, self.run.parts_of(unit))

    @no_autocast_no_grad
    def table(self, candidates: Candidates, ranked: Ranked) -> pd.DataFrame:
        """Ranked candidates as a table, with their certificate in `attrs`."""
        parts, base = candidates.parts, candidates.base.cpu()[ranked.group]
        increases = self.target.increases(ranked.increase, base)
        table = ranked_table(
            parts.unit,
            parts.fields(ranked.group, ranked.index),
            parts.sublayers(ranked.group),
            increases,
            self.str_tokens,
        )
        table.attrs["certificate"] = asdict(ranked.certificate)
        if parts.left_out:
            table.attrs["left_out_layers"] = list(parts.left_out)
        return table

    @no_autocast_no_grad
    def _table(
        self, unit: Unit, top: int | None, largest: bool = True, words: int | None = None, show_progress: bool = False
    ) -> pd.DataFrame:
        candidates = self.candidates(unit)
        ranked = rank(candidates, top=top, largest=largest, show_progress=show_progress)
        return self.with_words(self.table(candidates, ranked), words)
