"""Baevski & Auli's model written down a second time, from fairseq's names and in plain loops; and checkpoints of it.

Shares no code with the package. The sources are fairseq's modules `adaptive_input`, `adaptive_softmax` and
`transformer_decoder`; fairseq's own outputs are in tests/data/baevski18.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "data" / "baevski18"
STYLES = ("args", "cfg", "args2019")
PAD = 1

# Shapes that the fixture does not have: projections of their own, odd sizes, other cutoffs, factors, numbers of bands.
SHAPES: dict[str, dict[str, Any]] = {
    "untied": {"tie_proj": False},
    "odd width": {"d": 33, "heads": 3, "factor": 2.0},
    "one band": {"cutoffs": (61,)},
    "last cutoff is the vocabulary": {"cutoffs": (10, 30, 61), "factor": 2.0},
    "four bands untied": {"cutoffs": (7, 20, 45), "factor": 2.0, "tie_proj": False},
    "factor one": {"factor": 1.0},
    "factor one untied": {"factor": 1.0, "tie_proj": False},
    "factor with a fraction": {"factor": 1.5, "cutoffs": (5, 60)},
}


def expected() -> dict[str, Tensor]:
    """fairseq's outputs for the fixture."""
    return load_file(DATA / "expected.safetensors")


def described() -> dict[str, Any]:
    """What fairseq said about the fixture."""
    return json.loads((DATA / "expected.json").read_text(encoding="utf-8"))


def fixture(style: str = "args") -> Path:
    return DATA / f"tiny_fairseq_{style}.pt"


def widths(d: int, factor: float, n: int) -> list[int]:
    return [int(d // factor**i) for i in range(n)]


def make_checkpoint(
    *,
    d: int = 32,
    heads: int = 4,
    layers: int = 2,
    d_mlp: int = 20,
    vocab: int = 61,
    cutoffs: tuple[int, ...] = (12, 30),
    factor: float = 4.0,
    tie_proj: bool = True,
    length: int = 24,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """A random checkpoint in the style of May 2020, every parameter drawn; `options` change its args."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    ends = [*cutoffs] if cutoffs[-1] == vocab else [*cutoffs, vocab]
    sizes = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    model: dict[str, Tensor] = {"decoder.version": torch.tensor([3.0])}
    head, tail = "decoder.adaptive_softmax.head", "decoder.adaptive_softmax.tail"
    for b, (size, width) in enumerate(zip(sizes, widths(d, factor, len(sizes)), strict=True)):
        words, projection = draw(size, width, std=0.8), draw(d, width)
        model[f"decoder.embed_tokens.embeddings.{b}.0.weight"] = words
        model[f"decoder.embed_tokens.embeddings.{b}.1.weight"] = projection
        if b == 0:
            model[f"{head}.word_proj.weight"] = words.clone()
            model[f"{head}.class_proj.weight"] = draw(len(sizes) - 1, d)
        else:
            model[f"{tail}.{b - 1}.0.weight"] = projection.clone() if tie_proj else draw(width, d)
            model[f"{tail}.{b - 1}.2.weight"] = words.clone()
    for name in ("embed_tokens", "embed_positions", "adaptive_softmax.head"):
        model[f"decoder.{name}._float_tensor"] = torch.full((1,), float("nan"))
    model["decoder.adaptive_softmax.version"] = torch.tensor([1])
    for layer in range(layers):
        own = f"decoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            model[f"{own}.self_attn.{name}.weight"] = draw(d, d, std=0.4)
            model[f"{own}.self_attn.{name}.bias"] = draw(d)
        for name, rows, columns in (("fc1", d_mlp, d), ("fc2", d, d_mlp)):
            model[f"{own}.{name}.weight"], model[f"{own}.{name}.bias"] = draw(rows, columns), draw(rows)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            model[f"{own}.{name}.weight"], model[f"{own}.{name}.bias"] = 1 + draw(d), draw(d)
    args: dict[str, Any] = {
        "arch": "transformer_lm_wiki103",
        "decoder_layers": layers,
        "decoder_attention_heads": heads,
        "decoder_embed_dim": d,
        "decoder_ffn_embed_dim": d_mlp,
        "decoder_input_dim": d,
        "decoder_output_dim": d,
        "adaptive_input": True,
        "adaptive_input_cutoff": ",".join(map(str, cutoffs)),
        "adaptive_softmax_cutoff": ",".join(map(str, cutoffs)),
        "adaptive_input_factor": factor,
        "adaptive_softmax_factor": factor,
        "tie_adaptive_weights": True,
        "tie_adaptive_proj": tie_proj,
        "no_decoder_final_norm": True,
        "decoder_normalize_before": True,
        "activation_fn": "relu",
        "max_target_positions": length,
        "dropout": 0.3,
        "lr": [0.0001],
    }
    return {"args": argparse.Namespace(**{**args, **options}), "model": model, "extra_state": {"val_loss": 4.25}}


def write_dictionary(path: Path, vocab: int = 61) -> Path:
    path.write_text("".join(f"w{i} {1000 - i}\n" for i in range(4, vocab)), encoding="utf-8")
    return path


def write(folder: Path, checkpoint: dict[str, Any], vocab: int = 61) -> tuple[Path, Path]:
    """The checkpoint and a dictionary as files."""
    torch.save(checkpoint, folder / "model.pt")
    return folder / "model.pt", write_dictionary(folder / "dict.txt", vocab)


class Reference:
    """One checkpoint's forward pass in float64, word by word and head by head."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self.args = checkpoint["args"]
        self.model = {k.removeprefix("decoder."): v.double() for k, v in checkpoint["model"].items()}
        self.d = self.args.decoder_embed_dim
        tables = [k for k in self.model if k.startswith("embed_tokens.embeddings.") and k.endswith(".0.weight")]
        self.words = [self.model[f"embed_tokens.embeddings.{b}.0.weight"] for b in range(len(tables))]
        self.projections = [self.model[f"embed_tokens.embeddings.{b}.1.weight"] for b in range(len(tables))]
        self.starts = [sum(len(table) for table in self.words[:b]) for b in range(len(self.words) + 1)]

    def band(self, token: int) -> int:
        return max(b for b in range(len(self.words)) if token >= self.starts[b])

    def embed(self, token: int) -> Tensor:
        b = self.band(token)
        return math.sqrt(self.d) * self.projections[b] @ self.words[b][token - self.starts[b]]

    def position(self, row: int) -> Tensor:
        half = self.d // 2
        rate = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
        angle = torch.tensor(float(row)) * rate
        return torch.cat([angle.sin(), angle.cos(), torch.zeros(self.d % 2)]).double()

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.model[f"{name}.weight"] + self.model[f"{name}.bias"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.model[f"{name}.weight"].T + self.model[f"{name}.bias"]

    def residuals(self, tokens: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """The stream before block 0 and after each block; and every block's FFN activations."""
        x = torch.stack([self.embed(t) + self.position(PAD + 1 + p) for p, t in enumerate(tokens)])
        stream, activations = [x], []
        heads = self.args.decoder_attention_heads
        size = self.d // heads
        for layer in range(self.args.decoder_layers):
            own = f"layers.{layer}"
            h = self.norm(f"{own}.self_attn_layer_norm", x)
            q, k, v = (self.linear(f"{own}.self_attn.{name}_proj", h) for name in "qkv")
            mixed = torch.zeros_like(x)
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                for p in range(len(tokens)):
                    weight = (k[: p + 1, part] @ q[p, part] / math.sqrt(size)).softmax(0)
                    mixed[p, part] = weight @ v[: p + 1, part]
            x = x + self.linear(f"{own}.self_attn.out_proj", mixed)
            activations.append(self.linear(f"{own}.fc1", self.norm(f"{own}.final_layer_norm", x)).relu())
            x = x + self.linear(f"{own}.fc2", activations[-1])
            stream.append(x)
        return stream, activations

    def scores(self, x: Tensor) -> list[Tensor]:
        """What each softmax is taken of, linear in x [n, d]: the head's words and classes, then each band's words."""
        classes = self.model["adaptive_softmax.head.class_proj.weight"]
        found = [torch.cat([x @ self.words[0].T, x @ classes.T], -1)]
        for i in range(len(self.words) - 1):
            stored = self.model[f"adaptive_softmax.tail.{i}.0.weight"]
            down = stored.T if self.args.tie_adaptive_proj else stored
            found.append(x @ down.T @ self.words[i + 1].T)
        return found

    def log_probs(self, x: Tensor) -> Tensor:
        """Log-probabilities [n, vocab] read off the residual stream x [n, d]."""
        return self.over_words([score.log_softmax(-1) for score in self.scores(x.double())])

    def bs_values(self, x: Tensor) -> Tensor:
        """A word's score, its band's share included."""
        return self.over_words(self.scores(x.double()))

    def over_words(self, scores: list[Tensor]) -> Tensor:
        first = len(self.words[0])
        return torch.cat(
            [scores[0][:, :first], *(s + scores[0][:, first + i, None] for i, s in enumerate(scores[1:]))], -1
        )
