"""The numbers of the authors' notebooks (arXiv 2312.12141) beside ours, for "Tim Duncan plays the sport of".

    python demos/reproduce.py --model gpt2-large
    python demos/reproduce.py --model llama-7b --source FOLDER_OR_NAME

Where there is a Hugging Face hub; FOLDER_OR_NAME is any folder, GGUF file or name with the weights. Two readings are
given, for the authors' readout is not the model's: `exact` is the model's own (final norm centred, its bias included,
as in `tlsv.trace`); `authors` leaves the final norm's bias out and, of GPT-2, does not centre. Of Llama, whose norm
has neither, they are one. The authors' numbers were read in their notebooks, not computed here.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import tl_subvalues as tlsv
from tl_subvalues.decomposition.components import written

PROMPT, TARGET = "Tim Duncan plays the sport of", " basketball"


@dataclass(frozen=True)
class Case:
    """A model: where it is, where its own modules are, and what the authors report."""

    source: str
    norm: str
    expected: dict[str, float]


CASES = {
    "gpt2-large": Case(
        "gpt2-large",
        "transformer.ln_f",
        {
            "attention": 5.586,
            "FFN": 4.406,
            "L21H19": 0.698,
            "L28H18": 0.426,
            "L28N29": 0.448,
            "L21N983": 0.247,
        },
    ),
    "llama-7b": Case(
        "huggyllama/llama-7b",
        "model.norm",
        {
            "attention": 6.077,
            "FFN": 3.929,
            "L23H12": 0.978,
            "L21H0": 0.865,
            "L22N1674": 0.598,
            "L23N6740": 0.438,
        },
    ),
}


class AuthorsReadout:
    """log softmax of (gain * x / scale) W_U: the final norm without its bias and without its centring.

    The scale is the run's own at the last position, as in the exact reading.
    """

    def __init__(self, trace: tlsv.Trace, norm: str) -> None:
        hf = trace.model.original_model
        self.gain = hf.get_submodule(norm).weight.detach()
        self.unembed = hf.get_output_embeddings().weight.detach()
        final = trace.run.activations.final_residual(trace.position)[0]
        self.scale = trace.readout.scale_at(final)
        self.target = trace.target_id

    def increase(self, x: Tensor, v: Tensor) -> float:
        """Log-probability increase of the target, in nats."""
        logits = (self.gain * torch.stack([x, x + v]) / self.scale) @ self.unembed.T
        before, after = logits.log_softmax(-1)[:, self.target].tolist()
        return after - before


@torch.no_grad()
def measured(model: Any, case: Case, prompt: Any = PROMPT, target: Any = TARGET) -> pd.DataFrame:
    """One row for each number that the authors report: what, authors_report, exact, authors (their reading)."""
    trace = tlsv.trace(model, prompt, target)
    theirs = AuthorsReadout(trace, case.norm)
    layers = trace.layers()
    layers["authors"] = [
        theirs.increase(trace.run.site(row.layer, row.sublayer).residual, written(trace.run, row.label))
        for row in layers.itertuples()
    ]
    exact = {row.label: row.log_prob_increase for row in trace.heads().itertuples()}
    neurons = trace.ffn_neurons(top=None)
    exact |= dict(zip(neurons["label"], neurons["log_prob_increase"], strict=True))
    coefficients = dict(zip(neurons["label"], neurons["coefficient"], strict=True))
    rows = []
    for what, reported in case.expected.items():
        if what in ("attention", "FFN"):
            chosen = layers[layers["sublayer"] == ("attn" if what == "attention" else "mlp")]
            rows.append((what, reported, chosen["log_prob_increase"].sum(), chosen["authors"].sum()))
            continue
        layer = int(what[1:].replace("N", "H").split("H")[0])
        x = trace.run.site(layer, "mlp" if "N" in what else "attn").residual
        v = coefficients.get(what, 1.0) * written(trace.run, what)
        rows.append((what, reported, exact[what], theirs.increase(x, v)))
    table = pd.DataFrame(rows, columns=["what", "authors_report", "exact", "authors"])
    table.attrs |= {
        "log_prob": trace.log_prob,
        "rank": trace.rank,
        "heads": trace.heads(top=3)["label"].tolist(),
        "neurons": neurons["label"].head(3).tolist(),
    }
    return table


def main() -> None:
    """Load the model and show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=CASES)
    parser.add_argument("--source", help="a folder, GGUF file or hub name with its weights")
    options = parser.parse_args()
    case = CASES[options.model]
    table = measured(tlsv.load_model(options.source or case.source), case)
    print(f'"{PROMPT}" -> "{TARGET}": log p {table.attrs["log_prob"]:.3f}, rank {table.attrs["rank"]}')
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"strongest heads {', '.join(table.attrs['heads'])}; FFN neurons {', '.join(table.attrs['neurons'])} (exact)")


if __name__ == "__main__":
    main()
