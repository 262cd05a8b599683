"""Ways to rank parts by what they might mean to a prediction (the comparison of arXiv 2312.12141, section 4).

A ranking is a function from a trace to the score of every FFN neuron, layer after layer: docs/how-to/own-ranking.md
makes one in two lines.

Where the k highest can be found without scoring all, a ranking also has a shortcut. Rankings of heads and of attention
neurons begin with "head_" and "attn_neuron_".
"""

from collections.abc import Mapping, Sequence
from typing import get_args

from tl_subvalues.readout.targets import Measure
from tl_subvalues.study.effect_rankings import (
    attn_neurons,
    everywhere,
    gradient_times_activation,
    integrated,
    integrated_at_positions,
    integrated_at_the_last,
    integrated_attn_neurons,
    neurons_at_positions,
    neurons_at_the_last,
)
from tl_subvalues.study.increase_rankings import by_increase, by_prob_increase
from tl_subvalues.study.neuron_scores import (
    coefficient,
    coefficient_times_norm,
    direct_logit_attribution,
    norm,
)
from tl_subvalues.study.ranked import (
    ATTN_NEURONS,
    FFN_NEURONS,
    HEADS,
    NO_PROBABILITY,
    Contenders,
    RankedUnit,
    Ranking,
    Scores,
    at_random,
)

RANKINGS: dict[str, Ranking] = {
    "log_prob_increase": by_increase(FFN_NEURONS),
    "prob_increase": by_prob_increase(FFN_NEURONS),
    "coefficient": Ranking(coefficient),
    "norm": Ranking(norm),
    "coefficient_times_norm": Ranking(coefficient_times_norm),
    "direct_logit_attribution": Ranking(direct_logit_attribution),
    "gradient_times_activation": gradient_times_activation(),  # the total effect by gradient at the last
    "total_effect_frozen_last": neurons_at_the_last("frozen"),
    "total_effect_half_last": neurons_at_the_last("half"),
    "total_effect_gradient": neurons_at_positions("gradient"),
    "total_effect_frozen": neurons_at_positions("frozen"),
    "total_effect_half": neurons_at_positions("half"),
    "total_effect_gradient_summed": everywhere(FFN_NEURONS, "gradient"),
    "total_effect_frozen_summed": everywhere(FFN_NEURONS, "frozen"),
    "total_effect_half_summed": everywhere(FFN_NEURONS, "half"),
    "integrated_gradients_last": integrated_at_the_last(),
    "integrated_gradients_at_positions": integrated_at_positions(),
    "integrated_gradients": integrated(FFN_NEURONS),
    "random": at_random(0),
    "attn_neuron_log_prob_increase": by_increase(ATTN_NEURONS),
    "attn_neuron_prob_increase": by_prob_increase(ATTN_NEURONS),
    "attn_neuron_total_effect_gradient": attn_neurons("gradient"),
    "attn_neuron_total_effect_frozen": attn_neurons("frozen"),
    "attn_neuron_total_effect_half": attn_neurons("half"),
    "attn_neuron_integrated_gradients": integrated_attn_neurons(),
    "attn_neuron_random": at_random(0, ATTN_NEURONS),
    "head_log_prob_increase": by_increase(HEADS),
    "head_prob_increase": by_prob_increase(HEADS),
    "head_total_effect_gradient": everywhere(HEADS, "gradient"),
    "head_total_effect_frozen": everywhere(HEADS, "frozen"),
    "head_total_effect_half": everywhere(HEADS, "half"),
    "head_integrated_gradients": integrated(HEADS),
    "head_random": at_random(0, HEADS),
}
_RANDOM: dict[str, Contenders] = {"random": FFN_NEURONS, "attn_neuron_random": ATTN_NEURONS, "head_random": HEADS}


def chosen_rankings(
    rankings: Mapping[str, Scores] | Sequence[str] | None,
    seed: int,
    measure: Measure = "log_prob",
    unit: RankedUnit = "ffn_neuron",
) -> dict[str, Ranking]:
    """The rankings to compare, by name; of each unit that is ranked a random one, drawn from `seed`, among them.

    Args:
        rankings: names, functions by name (of FFN neurons), or None for all of a unit that rank for the measure.
        seed: of the random ones.
        measure: of the targets.
        unit: whose rankings None stands for.

    Raises:
        ValueError: for a name that is not in `RANKINGS`, a unit without rankings, a ranking that is no function, or
            not for the measure.
    """
    if unit not in get_args(RankedUnit):
        raise ValueError(f"unit is one of {', '.join(map(repr, get_args(RankedUnit)))}, got {unit!r}.")
    if rankings is None:
        rankings = {name: one for name, one in RANKINGS.items() if one.of.unit == unit and one.only in (None, measure)}
    if isinstance(rankings, str):
        rankings = [rankings]
    if not isinstance(rankings, Mapping):
        if not isinstance(rankings, Sequence) or not all(isinstance(name, str) for name in rankings):
            raise ValueError(f"rankings are names, or functions by name, got {rankings!r}.")
        unknown = [name for name in rankings if name not in RANKINGS]
        if unknown:
            raise ValueError(
                f"there is no ranking {unknown[0]!r}; there are {', '.join(RANKINGS)}, or pass a function."
            )
        rankings = {name: RANKINGS[name] for name in rankings}
    for name, scores in rankings.items():
        if not callable(scores):
            raise ValueError(f"ranking {name!r} is a function from a trace to scores, got {type(scores).__name__}.")
    for name in _RANDOM:
        if rankings.get(name, RANKINGS[name]) is not RANKINGS[name]:
            raise ValueError(f"{name!r} is the name of the random control; call your ranking something else.")
    known = {name: one if isinstance(one, Ranking) else Ranking(one) for name, one in rankings.items()}
    if any(one.only not in (None, measure) for one in known.values()):
        raise ValueError(NO_PROBABILITY)
    units = {one.of.unit for one in known.values()} or {unit}
    return {**known, **{name: at_random(seed, of) for name, of in _RANDOM.items() if of.unit in units}}


def own_rankings(rankings: Mapping[str, Ranking]) -> dict[str, Ranking]:
    """Those of a comparison that are the user's own."""
    return {name: one for name, one in rankings.items() if name not in _RANDOM and RANKINGS.get(name) is not one}


def rankings_named(names: Sequence[str], seed: int, own: Mapping[str, Ranking]) -> dict[str, Ranking]:
    """A comparison made again from its names, the user's own rankings given: what another process has to be told."""
    random = {name: at_random(seed, of) for name, of in _RANDOM.items()}
    return {name: {**RANKINGS, **random, **own}[name] for name in names}
