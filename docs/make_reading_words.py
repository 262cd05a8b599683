"""The figures of docs/reading-words.md: how many of a part's five words have to do with the fact, by each reading.

    python docs/make_reading_words.py smollm2-135m [NAME=FOLDER ...]

Ten facts; of each the ten strongest FFN neurons and the ten strongest heads at a source position. The rule is below,
and was written before anything was measured. Writes reading-words.csv, a line for each part and reading, and prints
the table.
"""

import argparse
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import tl_subvalues as tlsv
from tl_subvalues.model_view import decode_each, view_of

OUT = Path(__file__).with_name("reading-words.csv")
READINGS = ("cosine", "bs_value", "prob_increase")
PARTS, WORDS = 10, 5

# Kind, prompt, target: the first of each kind that SmolLM2-135M answers in demos/data/facts_checked.csv, three more.
FACTS = (
    ("capital", "The capital of France is", " Paris"),
    ("capital", "The capital of Italy is", " Rome"),
    ("language", "The official language of France is", " French"),
    ("language", "The official language of Germany is", " German"),
    ("color", "The color of grass is green, and the color of the sky is", " blue"),
    ("month", "The month after January is February, and the month after February is", " March"),
    ("day", "The days of the week are Thursday, Friday, Saturday, Sunday,", " Monday"),
    ("number", "Count with me: one, two,", " three"),
    ("opposite", "The opposite of hot is", " cold"),
    ("opposite", "The opposite of big is", " small"),
)

# The rule. A word has to do with a fact if, in small letters and without what is no letter, it is one of the fact's
# words, or one of the two, of four letters or more, begins the other. The fact's words are those of its prompt and
# target, but for the small change, and those of its kind:
SMALL_CHANGE = frozenset(["the", "of", "is", "and", "are", "with", "me", "after", "a", "an", "in", "to"])
PLACES = (
    "country countries nation national nationality state republic kingdom europe european asia asian africa african "
    "france french paris lyon marseille italy italian rome roman milan "
    "venice naples germany german berlin munich hamburg bavaria austria austrian vienna spain spanish madrid barcelona "
    "portugal portuguese lisbon england english london britain british scotland scottish ireland irish dublin wales "
    "welsh netherlands holland dutch amsterdam belgium belgian brussels switzerland swiss geneva zurich sweden swedish "
    "stockholm norway norwegian oslo denmark danish copenhagen finland finnish helsinki poland polish warsaw russia "
    "russian moscow ukraine ukrainian kiev kyiv czech prague hungary hungarian budapest romania romanian bucharest "
    "bulgaria bulgarian sofia serbia serbian belgrade croatia croatian greece greek athens turkey turkish istanbul "
    "ankara egypt egyptian cairo israel hebrew jerusalem iran persian tehran iraq baghdad india indian hindi delhi "
    "mumbai pakistan china chinese beijing shanghai mandarin japan japanese tokyo korea korean seoul vietnam "
    "vietnamese hanoi thailand thai bangkok indonesia indonesian jakarta australia australian canberra sydney canada "
    "canadian ottawa toronto mexico mexican america american washington brazil brazilian argentina argentine chile "
    "chilean peru peruvian lima colombia colombian bogota cuba cuban havana nigeria nigerian kenya kenyan nairobi "
    "morocco moroccan algeria algerian arabic arab latin"
)
KINDS = {
    "capital": f"city cities town metropolis metropolitan capitals municipality district region location {PLACES}",
    "language": "languages linguistic linguistics speak speaks spoken speaker speakers speech dialect grammar "
    f"{PLACES}",
    "color": "colors colour colours colored hue shade shades tint red orange yellow green blue purple violet indigo "
    "pink brown black white gray grey cyan magenta crimson scarlet azure turquoise teal navy gold golden silver bright "
    "dark pale light clear cloudy sunny sky skies cloud clouds sun lawn plant plants leaf leaves",
    "month": "months monthly year years calendar january february march april may june july august september october "
    "november december jan feb mar apr jun jul aug sept oct nov dec spring summer autumn fall winter season",
    "day": "days daily week weeks weekly weekend weekday weekdays monday tuesday wednesday thursday friday saturday "
    "sunday mon tue tues wed thu thurs fri sat sun today tomorrow yesterday",
    "number": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty hundred thousand million first second third fourth fifth "
    "sixth seventh eighth ninth tenth number numbers numeric digit digits counting counts triple double once twice",
    "opposite": "opposites opposing contrary reverse inverse antonym hot hotter heat heated warm warmer warmth cool "
    "cooler cold colder coldest chill chilly freezing frozen freeze ice icy temperature thermal big bigger biggest "
    "large larger largest huge giant great small smaller smallest little tiny mini minor size sized",
}


def letters(text: str) -> str:
    """A word in small letters, without what is no letter."""
    return "".join(c for c in text.lower() if c.isalpha())


class Rule:
    """The words that have to do with a fact."""

    def __init__(self, kind: str, prompt: str, target: str) -> None:
        asked = {letters(word) for word in re.split(r"\s+", f"{prompt} {target}")}
        self._words = (asked - SMALL_CHANGE - {""}) | set(KINDS[kind].split())
        self._beginnings = {word[:n] for word in self._words for n in range(4, len(word) + 1)}
        self._long = {word for word in self._words if len(word) >= 4}

    def holds(self, token: str) -> bool:
        """Whether a token has to do with the fact."""
        word = letters(token)
        if word in self._words or word in self._beginnings:
            return True
        return any(word[:n] in self._long for n in range(4, len(word)))


def measured(model: Any, name: str) -> Iterator[dict[str, Any]]:
    """A line for each part of each fact and each reading; the first of a fact's lines has the vocabulary's share."""
    view = view_of(model)
    vocabulary = decode_each(view, range(view.readout.d_vocab))
    for kind, prompt, target in FACTS:
        rule = Rule(kind, prompt, target)
        chance = sum(map(rule.holds, vocabulary)) / len(vocabulary)
        trace = tlsv.trace(model, prompt, target)
        for unit, table in (("ffn_neuron", trace.ffn_neurons(PARTS)), ("head_position", trace.head_positions(PARTS))):
            for by in READINGS:
                found = trace.writes(table, k=WORDS, by=by).groupby("label", sort=False)["token"].agg(list)
                for label, tokens in found.items():
                    count = sum(map(rule.holds, tokens))
                    yield {
                        "model": name,
                        "kind": kind,
                        "prompt": prompt,
                        "target": target,
                        "target_rank": trace.rank,
                        "unit": unit,
                        "label": label,
                        "by": by,
                        "related": count,
                        "words": json.dumps(tokens, ensure_ascii=False),
                        "vocabulary_share": round(chance, 5),
                    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Of each model, unit and reading: related words in a hundred, parts with three or more, different words."""
    table = table.assign(
        per_cent=100 * table["related"] / WORDS,
        three=table["related"] >= 3,
        tokens=table["words"].map(json.loads),
    )
    grouped = table.groupby(["model", "unit", "by"], sort=False)
    found = grouped.agg(per_cent=("per_cent", "mean"), parts_with_three=("three", "sum"), parts=("three", "size"))
    # Of a fact's words, how many are different: a reading that says the same of every part says little of each.
    facts = table.groupby(["model", "unit", "by", "prompt"], sort=False)["tokens"].agg(
        lambda lists: len({token for tokens in lists for token in tokens}) / sum(map(len, lists))
    )
    found["different"] = 100 * facts.groupby(["model", "unit", "by"], sort=False).mean()
    found["by_chance"] = 100 * grouped["vocabulary_share"].mean()
    return found.round(1).reset_index()


def main() -> None:
    """Measure each model that is named, and write the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="what tlsv.load_model takes, or NAME=FOLDER")
    lines: list[dict[str, Any]] = []
    with torch.no_grad():
        for given in parser.parse_args().models:
            name, _, source = given.partition("=")
            lines += measured(tlsv.load_model(source or name, device="cpu"), name)
    with OUT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(summary(pd.read_csv(OUT)).to_string(index=False))


if __name__ == "__main__":
    main()
