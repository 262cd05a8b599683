"""What a part does through the rest of the model: total effects beside direct ones, of parts at all positions.

    total effect of a component = ⟨what it adds, γ where it is added⟩
    direct effect               = ⟨what it adds, γ_final⟩ at the trace's position, else 0

Rule "gradient": γ is the true gradient of the measure (coefficient × gradient), which predicts what taking one part
alone out does. Rules "frozen" and "half": γ is led back through the frozen model, where the effects of the embeddings
and all bias terms add up to the score ⟨x_final, γ_final⟩: what the output consists of. Two questions; neither answers
the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.decomposition.everywhere import Everywhere, first_positions, parts_everywhere
from tl_subvalues.decomposition.run import Run
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.labels import NAMES, PART_OF, Unit, bias_label
from tl_subvalues.model_view import sum_tolerance
from tl_subvalues.readout.targets import Target
from tl_subvalues.upstream.covectors import Covectors, Entering
from tl_subvalues.upstream.gradient import Asked
from tl_subvalues.upstream.led_back import EffectRule, lead_back

EffectUnit = Literal["sublayer", "head", "head_position", "attn_neuron", "ffn_neuron", "embedding"]
EffectPositions = Literal["all", "last"]
# Products held at a time: 16 MB in float32.
_NUMBERS = 1 << 22

_MOST_SUBLAYERS = 8  # of a block

# Rows as columns of equal length: total, direct, layer and whatever else tells the parts of a unit apart.
Rows = dict[str, Tensor]


@dataclass(frozen=True)
class Wanted:
    """Which effects: of what, by which rule, where, and how many of which."""

    unit: EffectUnit = "ffn_neuron"
    rule: EffectRule = "gradient"
    positions: EffectPositions = "all"
    top: int | None = None
    largest: bool | None = None  # None: the largest in size

    def __post_init__(self) -> None:
        for name, known in (("unit", EffectUnit), ("rule", EffectRule), ("positions", EffectPositions)):
            if getattr(self, name) not in get_args(known):
                names = ", ".join(map(repr, get_args(known)))
                raise ValueError(f"{name} is one of {names}, got {getattr(self, name)!r}.")
        if self.largest not in (None, True, False):
            raise ValueError(f"largest is None, True or False, got {self.largest!r}.")

    def best(self, total: Float[Tensor, " n"]) -> Int[Tensor, " _"]:
        """The best rows, best first; ties in the order that they come in."""
        order = total.abs() if self.largest is None else total if self.largest else -total
        if self.top is None or len(order) <= 4 * self.top:
            return torch.sort(order, descending=True, stable=True).indices[: self.top]
        among = torch.topk(order, self.top).indices.sort().values
        return among[torch.sort(order[among], descending=True, stable=True).indices]


@dataclass(frozen=True)
class Effects:
    """The best rows in order."""

    unit: EffectUnit
    rows: Rows  # total, direct, at, layer, head, …
    names: list[str]  # of each row's sublayer; of embeddings and bias terms, their own
    score: float  # ⟨x_final, γ_final⟩: the sum of all direct effects


@dataclass(frozen=True)
class Prompted:
    """What effects are of: a run at the position where a target is predicted."""

    run: Run
    tokens: Int[Tensor, " pos"]
    target: Target
    final: Float[Tensor, " d_model"]  # γ_final, with respect to the final residual stream, its norm's scale held


def effects_of(many: Sequence[Prompted], wanted: Wanted) -> list[Effects]:
    """Effects of all parts of one unit in several runs of one model, the best `top` of each.

    Raises:
        UnsupportedModelError: if nothing can be led back through a layer, naming it, or if the effects of embeddings
            and bias terms do not add up to the score.
    """
    made = [_Made(one.run, one.final, wanted, first_positions(one.run)) for one in many]
    asked = [Asked(one.run, one.tokens, one.target, own.n, own.take) for one, own in zip(many, made, strict=True)]
    lead_back(asked, [one.final for one in many], wanted.rule)
    if wanted.rule != "gradient":
        for own in made:
            own.check_sum()
    return [own.effects() for own in made]


class _Made:
    """Effects as covectors come, the last sublayer's first: of each block of parts, only the best are kept."""

    def __init__(self, run: Run, final: Float[Tensor, " d_model"], wanted: Wanted, n: int) -> None:
        self.n = n
        self._run, self._final, self._wanted = run, final, wanted
        self._rows: list[Rows] = []
        self._biases: list[tuple[int, str, float]] = []
        self._entering: list[tuple[str, Float[Tensor, " pos"]]] = []
        x = run.activations.final_residual(run.position)[0]
        self.score = float(x.double() @ final.double())

    @torch.no_grad()
    def take(self, covectors: Covectors | Entering) -> None:
        """One sublayer's covectors, or those of what enters layer 0."""
        if isinstance(covectors, Entering):
            for name, vectors in self._run.activations.embeddings().items():
                self._entering.append((name, (vectors[0, : self.n] * covectors.output[0]).sum(-1)))
            return
        if covectors.bias is not None:
            self._biases.append((covectors.layer, covectors.sublayer, float(covectors.bias[0])))
        unit = self._wanted.unit
        if unit == "embedding" or PART_OF[unit] not in (None, covectors.sublayer):
            return
        groups = parts_everywhere(self._run, covectors.layer, covectors.sublayer, unit, self.n)
        inner = (covectors.output,) if unit == "sublayer" else covectors.inner
        for group, own in zip(groups, inner, strict=True):
            for block in self._blocks(group, unit):
                self._rows.append(self._block(covectors, group.at(block), own[:, block], block, unit))
        if len(self._rows) > 64 and self._wanted.top is not None:
            self._rows = [_chosen(_joined(self._rows), self._wanted)]

    def _blocks(self, group: Everywhere, unit: Unit) -> Iterator[slice]:
        """The positions that are asked for, few enough at a time."""
        last = slice(self._run.position, self._run.position + 1)
        if self._wanted.positions == "last":
            yield last
            return
        each = 1
        for size in list(group.at(last).axes(unit).values())[1:]:
            each *= size
        step = max(1, _NUMBERS // max(1, each))
        for start in range(0, self.n, step):
            yield slice(start, min(start + step, self.n))

    def _block(
        self, covectors: Covectors, parts: Everywhere, inner: Float[Tensor, "1 pos *rest"], at: slice, unit: Unit
    ) -> Rows:
        """The best rows of some positions of one sublayer."""
        total = parts.products(unit, inner)[0]
        direct = torch.zeros_like(total)
        here = self._run.position - at.start
        if 0 <= here < len(total):
            one = parts.at(slice(here, here + 1))
            direct[here] = one.products(unit, one.inner(self._final[None, None]))[0, 0]
        axes = parts.axes(unit)
        if "position" in axes:  # what comes after its reader is not there
            places = torch.arange(at.start, at.start + axes["at"], device=total.device)
            later = torch.arange(axes["position"], device=total.device)[None] > places[:, None]
            there = ~later.reshape(*later.shape, *[1] * (total.ndim - 2)).expand_as(total) | (total != 0)
            listed = torch.nonzero(there.flatten()).flatten()
        else:
            listed = torch.arange(total.numel(), device=total.device)
        total, direct = total.flatten(), direct.flatten()
        best = listed[self._wanted.best(total[listed])]
        rows: Rows = {"total": total[best], "direct": direct[best]}
        rest = best
        for name, size in reversed(axes.items()):
            rows[name], rest = rest % size, rest // size
        rows["at"] = rows["at"] + at.start
        rows["layer"] = torch.full_like(best, covectors.layer)
        number = self._run.view.layer(covectors.layer).sublayers.index(covectors.sublayer)
        rows["place"] = torch.full_like(best, _MOST_SUBLAYERS * covectors.layer + number)
        m, expert = parts.coefficients_of(unit), getattr(parts, "expert", None)
        if m is not None:
            rows["coefficient"] = m.flatten()[best]
        if expert is not None:
            rows["expert"] = torch.full_like(best, expert)
        return {name: values.cpu() for name, values in rows.items()}

    def check_sum(self) -> None:
        """Check that embeddings and bias terms add up to the score.

        Raises:
            UnsupportedModelError: if something that is led back otherwise than the model computes it is in between.
        """
        parts = [*(effects.sum().item() for _, effects in self._entering), *(bias for *_, bias in self._biases)]
        size = sum(float(effects.abs().sum()) for _, effects in self._entering) + sum(abs(b) for *_, b in self._biases)
        error = abs(sum(parts) - self.score)
        if not error <= 10 * sum_tolerance(self._run.view) * max(size, abs(self.score)):
            raise UnsupportedModelError(
                f"{self._run.view.name}: the effects of embeddings and bias terms add up to {sum(parts):.4g}, not to "
                f"the score {self.score:.4g} (they amount to {size:.4g}), so something in a block is led back "
                "otherwise than it is computed; rule='gradient' does without."
            )

    def effects(self) -> Effects:
        """All that was kept, the best first."""
        if self._wanted.unit == "embedding":
            return self._of_embeddings()
        if not self._rows:
            raise UnsupportedModelError(
                f"{self._run.view.name} has no {NAMES[self._wanted.unit]} whose effects could be listed; ask for "
                "another unit."
            )
        rows = _joined(self._rows)
        computed = torch.argsort(rows["place"], stable=True)
        rows = _chosen({name: values[computed] for name, values in rows.items()}, self._wanted)
        layers, places = self._run.view.layers, rows.pop("place").tolist()
        names = [layers[place // _MOST_SUBLAYERS].sublayers[place % _MOST_SUBLAYERS] for place in places]
        return Effects(self._wanted.unit, rows, names, self.score)

    def _of_embeddings(self) -> Effects:
        """Embeddings by position and, where they are known, the bias terms of every sublayer."""
        places = range(self.n) if self._wanted.positions == "all" else [self._run.position]
        found = [(name, p, float(effects[p])) for name, effects in self._entering for p in places]
        direct = {
            name: float(vectors[0, self._run.position] @ self._final)
            for name, vectors in self._run.activations.embeddings().items()
        }
        here = [direct[name] if p == self._run.position else 0.0 for name, p, _ in found]
        for layer, sublayer, bias in reversed(self._biases):
            found.append((bias_label(layer, sublayer), -1, bias))
            here.append(float(self._run.bias(self._run.site(layer, sublayer)) @ self._final))
        total = torch.tensor([value for *_, value in found], dtype=torch.float64)
        positions = torch.tensor([p for _, p, _ in found])
        rows: Rows = {"total": total, "direct": torch.tensor(here, dtype=torch.float64), "at": positions}
        best = self._wanted.best(total)
        names = [found[row][0] for row in best.tolist()]
        return Effects("embedding", {name: values[best] for name, values in rows.items()}, names, self.score)


def _joined(rows: list[Rows]) -> Rows:
    """Several sublayers' rows one after the other; −1 where only some have an expert."""
    names = list(dict.fromkeys(name for one in rows for name in one))
    return {name: torch.cat([one.get(name, torch.full_like(one["layer"], -1)) for one in rows]) for name in names}


def _chosen(rows: Rows, wanted: Wanted) -> Rows:
    best = wanted.best(rows["total"])
    return {name: values[best] for name, values in rows.items()}
