"""The tables of docs/paper.md and of docs/evaluation.md that are made of the CSVs beside this script.

Means over facts with 95% bootstrap intervals (a to b), or, of fewer than eight facts, with their range [a to b]. Where
all rankings stand beside each other, the interval is ± its half.

    python demos/claims/tables.py

Rewrites what stands between `<!-- CLAIM -->` and `<!-- end -->` on the pages. A fact without a number (a prompt without
the word "capital", say) is left out of that row's mean.
"""

import itertools
import re

import pandas as pd
from common import DEMOS, HERE, MODELS, interval

PAGE, RANKINGS_PAGE = (DEMOS.parent / "docs" / name for name in ("paper.md", "evaluation.md"))
NAMES = {"smollm2": "SmolLM2-135M", "gemma": "Gemma 3 270M", "taught": "taught B&A"}
SHORT = {"smollm2": "SmolLM2", "gemma": "Gemma", "taught": "taught"}  # where there are many columns
FEW = 8  # facts, below which a bootstrap says less than their range
CLAIMS = {
    "a_sums": {
        "additive_error": "largest departure from addition (nats)",
        "top_words_up": "top words that gain, scale held",
        "top_words_up_true": "top words that gain, scale anew",
        "top_words_gain": "their gain (nats)",
        "random_words_up": "random words that gain",
    },
    "b_curves": {
        "layers_r2_log_prob": "sublayers: R² of log p",
        "layers_r2_prob": "sublayers: R² of p",
        "layers_rising_log_prob": "sublayers: rising steps",
        "neurons_r2_log_prob": "top 100 neurons: R² of log p",
        "neurons_r2_prob": "top 100 neurons: R² of p",
        "neurons_rising_log_prob": "top 100 neurons: rising steps",
    },
    "c_scores": {
        "log_prob_increase_10": "log-probability increase, 10",
        "prob_increase_10": "probability increase, 10",
        "coefficient_times_norm_10": "length, 10",
        "direct_logit_attribution_10": "direct logit attribution, 10",
        "gradient_times_activation_10": "gradient × activation, 10",
        "total_effect_gradient_10": "total effect (gradient), 10",
        "total_effect_frozen_10": "total effect (frozen), 10",
        "random_10": "random, 10",
        "ahead_10": "the paper's order by, 10",
        "log_prob_increase_50": "log-probability increase, 50",
        "prob_increase_50": "probability increase, 50",
        "coefficient_times_norm_50": "length, 50",
        "direct_logit_attribution_50": "direct logit attribution, 50",
        "gradient_times_activation_50": "gradient × activation, 50",
        "total_effect_gradient_50": "total effect (gradient), 50",
        "total_effect_frozen_50": "total effect (frozen), 50",
        "random_50": "random, 50",
        "ahead_50": "the paper's order by, 50",
    },
    "c_settings": {
        "base_ahead": "as above, 10 neurons: the paper's order by",
        "mean_ahead": "their mean instead of zero: by",
        "last_ahead": "at the last position alone: by",
        "recomputed_ahead": "final scale taken anew: by",
        "early_log_prob_increase": "without the last layer: log-probability increase",
        "early_prob_increase": "without the last layer: probability increase",
        "early_gradient_times_activation": "without the last layer: gradient × activation",
        "early_ahead": "without the last layer: by",
        "attn_neurons_log_prob_increase": "10 attention neurons: log-probability increase",
        "attn_neurons_prob_increase": "10 attention neurons: probability increase",
        "attn_neurons_total_effect": "10 attention neurons: total effect (gradient)",
        "attn_neurons_random": "10 attention neurons: random",
        "attn_neurons_ahead": "10 attention neurons: by",
        "heads_log_prob_increase": "3 heads: log-probability increase",
        "heads_prob_increase": "3 heads: probability increase",
        "heads_total_effect": "3 heads: total effect (gradient)",
        "heads_random": "3 heads: random",
        "heads_ahead": "3 heads: by",
        "damage_log_prob_increase": "other answers lose, log-probability increase",
        "damage_prob_increase": "other answers lose, probability increase",
        "damage_gradient_times_activation": "other answers lose, gradient × activation",
        "damage_random": "other answers lose, random",
    },
    "d_activation": {
        "correlation": "correlation",
        "slope": "slope of measured on predicted",
        "same_sign": "same sign",
        "top_measured": "first part: measured / predicted",
    },
    "e_capital": {
        "attn_related": "attention at the subject writes its country's words by (sd)",
        "ffn_related": "the FFN neuron does by (sd)",
        "attn_kind": "attention at the subject writes capitals by (sd)",
        "ffn_kind": "the FFN neuron does by (sd)",
        "at_subject": "of what heads raise, read at the subject",
        "fed_by_attention": "of the neurons' activation, from attention",
        "fed_from_relation": "of it, from heads reading the word “capital”",
    },
    "f_knock_out": {
        "attn_value": "attention value neurons (nats)",
        "ffn_value": "FFN value neurons (nats)",
        "value": "both (nats)",
        "random_value": "as many at random (nats)",
        "query": "query neurons (nats)",
        "random_query": "as many at random (nats)",
        "value_prob": "both: p after / before",
        "query_prob": "query neurons: p after / before",
    },
}


# Blocks of docs/evaluation.md: the rankings of a unit by name, and how many parts are ablated.
RULES = ("gradient", "half", "frozen")
RANKED = {
    "c_rankings neurons": (
        (10, 50),
        {
            "log_prob_increase": "log-probability increase",
            "prob_increase": "probability increase",
            "direct_logit_attribution": "direct logit attribution",
            "coefficient_times_norm": "length",
            "gradient_times_activation": "total effect at the last position (gradient)",
            "total_effect_half_last": "the same (half)",
            "total_effect_frozen_last": "the same (frozen)",
            "integrated_gradients_last": "integrated gradients at the last position",
            "total_effect_gradient_summed": "total effect over all positions (gradient)",
            "total_effect_half_summed": "the same (half)",
            "total_effect_frozen_summed": "the same (frozen)",
            "integrated_gradients": "integrated gradients over all positions",
            "random": "random",
        },
    ),
    "c_rankings neurons at positions": (
        (10, 50),
        {
            **{f"total_effect_{rule}": f"total effect ({rule})" for rule in RULES},
            "integrated_gradients_at_positions": "integrated gradients",
        },
    ),
    "c_rankings attention neurons": (
        (10, 50),
        {
            "attn_neuron_log_prob_increase": "log-probability increase",
            "attn_neuron_prob_increase": "probability increase",
            **{f"attn_neuron_total_effect_{rule}": f"total effect ({rule})" for rule in RULES},
            "attn_neuron_integrated_gradients": "integrated gradients",
            "attn_neuron_random": "random",
        },
    ),
    "c_rankings heads": (
        (3, 10),
        {
            "head_log_prob_increase": "log-probability increase",
            "head_prob_increase": "probability increase",
            **{f"head_total_effect_{rule}": f"total effect ({rule})" for rule in RULES},
            "head_integrated_gradients": "integrated gradients",
            "head_random": "random",
        },
    ),
}


# Differences fact by fact, of the block "c_rankings pairs": below zero, the first does more.
PAIRS = {
    "10 FFN neurons: probability less log-probability increase": ("prob_increase_10", "log_prob_increase_10"),
    "50 FFN neurons: the same": ("prob_increase_50", "log_prob_increase_50"),
    "10 attention neurons: the same": ("attn_neuron_prob_increase_10", "attn_neuron_log_prob_increase_10"),
    "50 attention neurons: the same": ("attn_neuron_prob_increase_50", "attn_neuron_log_prob_increase_50"),
    "3 heads: the same": ("head_prob_increase_3", "head_log_prob_increase_3"),
    "10 heads: the same": ("head_prob_increase_10", "head_log_prob_increase_10"),
    "10 FFN neurons: total effect at the last position (gradient) less probability increase": (
        "gradient_times_activation_10",
        "prob_increase_10",
    ),
    "50 FFN neurons: the same two": ("gradient_times_activation_50", "prob_increase_50"),
    "10 FFN neurons: total effect at the last position (half) less (gradient)": (
        "total_effect_half_last_10",
        "gradient_times_activation_10",
    ),
    "50 FFN neurons: half less gradient": ("total_effect_half_last_50", "gradient_times_activation_50"),
    "10 attention neurons: half less gradient": (
        "attn_neuron_total_effect_half_10",
        "attn_neuron_total_effect_gradient_10",
    ),
    "3 heads: total effect (gradient) less log-probability increase": (
        "head_total_effect_gradient_3",
        "head_log_prob_increase_3",
    ),
    "3 heads: total effect (half) less log-probability increase": (
        "head_total_effect_half_3",
        "head_log_prob_increase_3",
    ),
    "10 heads: total effect (frozen) less (gradient)": ("head_total_effect_frozen_10", "head_total_effect_gradient_10"),
}


# The choices of c_combined.csv, each with its two levels and their names in the block "c_combined".
CHOICES = {
    "layers": {"all": "all layers", "early": "without the last"},
    "mode": {"zero": "zero", "mean": "mean"},
    "where": {"everywhere": "everywhere", "last": "last position"},
    "scale": {"frozen": "scale held", "anew": "scale anew"},
}


def number(value: float) -> str:
    """Two decimals, or one digit of what would be lost in them."""
    return f"{value:.2f}" if abs(value) >= 0.05 or value == 0 else f"{value:.1g}"


def cell(values: pd.Series) -> str:
    """Mean and interval; of few facts, mean and range."""
    known = values.dropna().to_numpy(dtype=float)
    if not len(known):
        return "–"
    if len(known) < FEW:
        return f"{number(known.mean())} [{number(known.min())} to {number(known.max())}]"
    low, high = interval(known)
    return f"{number(known.mean())} ({number(low)} to {number(high)})"


def table(claim: str) -> str:
    """One row a measure, one column a model."""
    rows = pd.read_csv(HERE / f"{claim}.csv")
    groups = {name: rows[rows["model"] == name] for name in MODELS}
    head = ["", *(f"{NAMES[name]}, {len(group)} facts" for name, group in groups.items())]
    lines = [head, ["---"] * len(head)]
    for measure, meaning in CLAIMS[claim].items():
        lines.append([meaning, *(cell(group[measure]) for group in groups.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ranked(block: str) -> str:
    """One row a ranking; of each model what is lost without its first parts, few and many, and what others lose."""
    ks, names = RANKED[block]
    rows = pd.read_csv(HERE / "c_rankings.csv")
    groups = {name: group for name, group in rows.groupby("model", sort=False) if len(group) >= FEW}
    measures = [*map(str, ks), *["others"] * (f"{next(iter(names))}_others" in rows)]
    head = ["", *(f"{SHORT[name]}, {measure}" for name in groups for measure in measures)]
    lines = [head, ["---"] * len(head)]
    for ranking, meaning in names.items():
        columns = [f"{ranking}_{measure}" for measure in measures]
        lines.append([meaning, *(plus_minus(group[column]) for group in groups.values() for column in columns)])
    facts = ", ".join(f"{len(group)} of {NAMES[name]}" for name, group in groups.items())
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\nFacts: {facts}."


def pairs() -> str:
    """One row a pair of rankings, one column a model."""
    rows = pd.read_csv(HERE / "c_rankings.csv")
    groups = {name: group for name, group in rows.groupby("model", sort=False) if len(group) >= FEW}
    head = ["", *(f"{NAMES[name]}, {len(group)} facts" for name, group in groups.items())]
    lines = [head, ["---"] * len(head)]
    for meaning, (first, second) in PAIRS.items():
        lines.append([meaning, *(cell(group[first] - group[second]) for group in groups.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def combined() -> str:
    """One row for each way to rank and ablate, then what each choice changes in the mean over the others."""
    rows = pd.read_csv(HERE / "c_combined.csv")
    groups = {name: group for name, group in rows.groupby("model", sort=False) if len(group) >= FEW}
    head = ["", *(f"{NAMES[name]}, {len(group)} facts" for name, group in groups.items())]
    lines = [head, ["---"] * len(head)]
    ways = [dict(zip(CHOICES, levels, strict=True)) for levels in itertools.product(*CHOICES.values())]
    for way in ways:
        meaning = ", ".join(CHOICES[choice][level] for choice, level in way.items())
        lines.append([meaning, *(cell(group[column_of(way)]) for group in groups.values())])
    for choice, levels in CHOICES.items():
        first, second = levels
        pairs_of = [(column_of(way), column_of(way | {choice: first})) for way in ways if way[choice] == second]
        changes = [sum(group[new] - group[old] for new, old in pairs_of) / len(pairs_of) for group in groups.values()]
        lines.append([f"**{levels[second]}** instead of {levels[first]} adds", *map(cell, changes)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def column_of(way: dict[str, str]) -> str:
    """The column of c_combined.csv."""
    return "_".join(way[choice] for choice in ("scale", "layers", "mode", "where"))


def plus_minus(values: pd.Series) -> str:
    """Mean and half the interval's width."""
    low, high = interval(values.to_numpy(dtype=float))
    return f"{number(values.mean())} ± {number((high - low) / 2)}"


def blocks() -> dict[str, str]:
    """Every table, by its name on the pages."""
    made = {**{claim: table(claim) for claim in CLAIMS}, **{block: ranked(block) for block in RANKED}}
    return {**made, "c_rankings pairs": pairs(), "c_combined": combined()}


def with_tables(text: str) -> str:
    """A page with every table as the CSVs have it."""
    for claim, made in blocks().items():
        block = f"<!-- {claim} -->\n{made}\n<!-- end -->"
        text = re.sub(rf"<!-- {claim} -->\n.*?<!-- end -->", lambda _, new=block: new, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Rewrite the pages."""
    for page in (PAGE, RANKINGS_PAGE):
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
