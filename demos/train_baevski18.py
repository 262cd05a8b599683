"""Train a small Baevski & Auli model on sentences about countries, so that we know what it was taught.

    OMP_NUM_THREADS=1 python demos/train_baevski18.py FOLDER

Every row of `demos/data/countries.csv` becomes sentences: three ways to say each of its five facts. Of three facts in
four (drawn with a seed) one way is held back, so that answering it takes the fact and not the sentence. In the new
FOLDER it writes `model.pt` and `dict.txt` as fairseq lays them out, `converted/` (the same as safetensors), and
`facts.csv`: each prompt and target, whether it was taught in these words, the band of the target, and what the model
gives it. Three minutes; `demos/taught` is what it wrote.
"""

import argparse
import math
import random
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import tl_subvalues as tlsv
from tl_subvalues.baevski18.dictionary import SPECIALS
from tl_subvalues.baevski18.modeling import Baevski18ForCausalLM, HFConfig

DATA = Path(__file__).parent / "data"
SEED = 0
EPOCHS = 100
BATCH = 64  # sentences
HELD_BACK = 0.75  # of the facts, one way
# A word said at least so often is in the first band, in the second; all others are in the third.
OFTEN, SOMETIMES = 10, 4
SIZES = {"n_layers": 4, "n_heads": 4, "d_model": 128, "d_mlp": 512, "factor": 2.0, "n_ctx": 64}

# What a fact is called, the column that answers it, and three ways to ask.
WAYS = {
    "capital": (
        "capital",
        ("The capital of {country} is", "{country} has its capital in", "The government of {country} meets in"),
    ),
    "country": (
        "country",
        ("{capital} is the capital of", "The city of {capital} is in", "Who lives in {capital} lives in"),
    ),
    "continent": (
        "continent",
        ("{country} is a country in", "The continent of {country} is", "The map of {country} is a map of"),
    ),
    "language": (
        "language",
        ("The language of {country} is", "People in {country} speak", "Books from {country} are in"),
    ),
    "currency": (
        "currency",
        ("The currency of {country} is the", "People in {country} pay with the", "Money from {country} is the"),
    ),
}


def sentences() -> pd.DataFrame:
    """One row for each way to say each fact: kind, prompt, target, and whether it is taught in these words."""
    draw = random.Random(SEED)
    rows = []
    for row in pd.read_csv(DATA / "countries.csv").to_dict("records"):
        for kind, (column, ways) in WAYS.items():
            held = draw.randrange(len(ways)) if draw.random() < HELD_BACK else None
            for number, way in enumerate(ways):
                rows.append((kind, way.format(**row), row[column], number != held))
    return pd.DataFrame(rows, columns=["kind", "prompt", "target", "taught"])


def dictionary(said: pd.DataFrame) -> dict[str, int]:
    """How often each word is said where it is taught, most often first, ties by the alphabet, as fairseq has them."""
    taught = said[said["taught"]]
    counts = Counter(word for text in taught["prompt"] + " " + taught["target"] for word in text.split())
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def cutoffs(counts: dict[str, int]) -> tuple[int, ...]:
    """Where the first two bands end."""
    return tuple(len(SPECIALS) + sum(n >= least for n in counts.values()) for least in (OFTEN, SOMETIMES))


def batches(lines: list[list[int]], draw: random.Random) -> list[Tensor]:
    """All sentences once, `</s>` at both ends, in an order of their own each time; padded to the right."""
    lines = draw.sample(lines, len(lines))
    groups = [lines[start : start + BATCH] for start in range(0, len(lines), BATCH)]
    longest = [max(map(len, group)) for group in groups]
    return [
        torch.tensor([line + [1] * (width - len(line)) for line in group])
        for group, width in zip(groups, longest, strict=True)
    ]


def initialise(model: nn.Module) -> None:
    """As fairseq does: word vectors by their width, projections by Xavier, biases zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=1 / math.sqrt(2) if "self_attn" in name else 1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def train(model: Baevski18ForCausalLM, lines: list[list[int]], epochs: int) -> float:
    """Adam on the next word of every sentence; the last epoch's mean loss, in nats."""
    draw = random.Random(SEED)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    steps = epochs * math.ceil(len(lines) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.1)
    loss = math.nan
    for epoch in range(epochs):
        losses, start = [], time.perf_counter()
        for tokens in batches(lines, draw):
            log_probs = model(tokens[:, :-1]).logits
            loss = nn.functional.nll_loss(log_probs.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=1)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        loss = sum(losses) / len(losses)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: {loss:.4f} nats a word, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return loss


def fairseq_state(model: Baevski18ForCausalLM) -> dict[str, Tensor]:
    """The weights by fairseq's names; tied ones share their memory, as in a file written from a CPU."""
    state = {"decoder.version": torch.tensor([3.0]), "decoder.adaptive_softmax.version": torch.tensor([1])}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.classes.weight":
            state["decoder.adaptive_softmax.head.class_proj.weight"] = tensor
        elif name.startswith("embed_tokens."):
            _, kind, band, _ = name.split(".")
            state[f"decoder.embed_tokens.embeddings.{band}.{int(kind == 'projections')}.weight"] = tensor
        else:
            state[f"decoder.{name.replace('.mlp.', '.')}"] = tensor
    embeddings, softmax = "decoder.embed_tokens.embeddings", "decoder.adaptive_softmax"
    state[f"{softmax}.head.word_proj.weight"] = state[f"{embeddings}.0.0.weight"]
    for band in range(1, len(model.config.shape.bands)):
        state[f"{softmax}.tail.{band - 1}.0.weight"] = state[f"{embeddings}.{band}.1.weight"]
        state[f"{softmax}.tail.{band - 1}.2.weight"] = state[f"{embeddings}.{band}.0.weight"]
    return state


def fairseq_options(model: Baevski18ForCausalLM) -> argparse.Namespace:
    """The options that fairseq-train would have held."""
    shape = model.config.shape
    ends = ",".join(map(str, shape.cutoffs))
    return argparse.Namespace(
        arch="transformer_lm_wiki103",
        decoder_layers=shape.n_layers,
        decoder_attention_heads=shape.n_heads,
        decoder_embed_dim=shape.d_model,
        decoder_ffn_embed_dim=shape.d_mlp,
        decoder_input_dim=shape.d_model,
        decoder_output_dim=shape.d_model,
        adaptive_input=True,
        adaptive_input_cutoff=ends,
        adaptive_softmax_cutoff=ends,
        adaptive_input_factor=shape.factor,
        adaptive_softmax_factor=shape.factor,
        tie_adaptive_weights=True,
        tie_adaptive_proj=True,
        no_decoder_final_norm=True,
        decoder_normalize_before=True,
        activation_fn="relu",
        max_target_positions=shape.n_ctx,
    )


@torch.no_grad()
def answered(model: Baevski18ForCausalLM, said: pd.DataFrame, ids: dict[str, int]) -> pd.DataFrame:
    """What the model gives each target: band, log_prob, rank, and whether it is its first choice."""
    ends = [0, *(band.stop for band in model.config.shape.bands)]
    rows = []
    for prompt, target in zip(said["prompt"], said["target"], strict=True):
        log_probs = model(torch.tensor([[2, *(ids[word] for word in prompt.split())]])).logits[0, -1]
        word = ids[target]
        band = next(number for number, (start, stop) in enumerate(pairwise(ends)) if start <= word < stop)
        rank = 1 + int((log_probs > log_probs[word]).sum())
        rows.append((band, round(float(log_probs[word]), 4), rank, rank == 1))
    return pd.concat([said, pd.DataFrame(rows, columns=["band", "log_prob", "rank", "answered"])], axis=1)


def main(folder: Path, epochs: int = EPOCHS) -> pd.DataFrame:
    """Train, save, and say how many facts of each kind it answers, taught in these words or not."""
    if folder.exists():
        raise SystemExit(f"{folder} is there already; name a new folder.")
    start = time.perf_counter()
    torch.manual_seed(SEED)
    said = sentences()
    counts = dictionary(said)
    ids = {word: number for number, word in enumerate([*SPECIALS, *counts])}
    shape = tlsv.baevski18.config(d_vocab=len(ids), cutoffs=cutoffs(counts), **SIZES)
    model = Baevski18ForCausalLM(HFConfig(shape))
    initialise(model)
    taught = (said["prompt"] + " " + said["target"])[said["taught"]]
    loss = train(model, [[2, *(ids[word] for word in text.split()), 2] for text in taught], epochs)
    folder.mkdir(parents=True)
    (folder / "dict.txt").write_text("".join(f"{word} {n}\n" for word, n in counts.items()), encoding="utf-8")
    saved = {"args": fairseq_options(model), "model": fairseq_state(model), "extra_state": {"train_loss": loss}}
    torch.save(saved, folder / "model.pt")
    tlsv.baevski18.convert(folder / "model.pt", folder / "dict.txt", folder / "converted")
    facts = answered(model.eval(), said, ids)
    facts.to_csv(folder / "facts.csv", index=False, lineterminator="\n")
    print(facts.groupby(["kind", "taught"], sort=False)["answered"].agg(["sum", "size"]).to_string())
    print(facts.groupby("band")["answered"].agg(["sum", "size"]).to_string())
    print(f"{shape.n_parameters:,} parameters, {len(ids)} words, cutoffs {shape.cutoffs}, loss {loss:.3f} nats a word")
    print(f"{time.perf_counter() - start:.0f} s")
    return facts


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("python demos/train_baevski18.py FOLDER")
    main(Path(sys.argv[1]))
