"""Rows that write a word, and rows that are alike: brute force over families and the embedded model, refusals."""

from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from helpers import baevski18_reference as fairseq
from helpers import zoo
from helpers.rows import RowsByHand

import tl_subvalues as tlsv
from tl_subvalues.rows import rows as rows_module

pytestmark = [pytest.mark.bridge, pytest.mark.any_release]
FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox_parallel", "granite", "cohere", "mixtral"]
SEVERAL = ["deepseek_v3", "qwen2_moe", "gpt_oss", "olmo2", "phi"]  # slow: outside `zoo.QUICK`
WORDS = [9, 33, 58]
CLOSE = 2e-5


def check(table: Any, hand: RowsByHand, by: str, words: list[int], largest: bool) -> None:
    """Labels, values and ranks of a table of some of the rows."""
    values = hand.values(by)
    of_words = values[:, words] if largest else -values[:, words]
    best, which = of_words.max(1)
    bound = CLOSE * max(1.0, float(values.abs().max()))
    number = {label: i for i, label in enumerate(hand.labels)}
    chosen = torch.tensor([number[label] for label in table["label"]])
    assert len(chosen.unique()) == len(chosen)
    sign = 1 if largest else -1
    found = sign * torch.tensor(table["value"].to_numpy())
    assert (found - best[chosen]).abs().max() < bound
    assert (found - best.sort(descending=True).values[: len(found)]).abs().max() < bound
    assert (found.diff() <= 0).all()
    for row, i in zip(table.itertuples(), chosen.tolist(), strict=True):
        assert row.token_id == words[int(which[i])] or of_words[i, words.index(row.token_id)] > best[i] - bound
        all_words, own = sign * values[i], float(sign * values[i, row.token_id])
        assert 1 + (all_words > own + bound).sum() <= row.rank <= (all_words > own - bound).sum(), row.label


@pytest.mark.parametrize("by", ["cosine", "bs_value"])
@pytest.mark.parametrize("unit", ["ffn_neuron", "attn_neuron"])
@pytest.mark.parametrize("family", [*FAMILIES, *zoo.slow(*SEVERAL)])
def test_find_is_brute_force(family: str, unit: Any, by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One word and several, highest and lowest, all rows and some, read in blocks of any size; experts' rows too."""
    if family == "deepseek_v3" and unit == "attn_neuron":
        family = "mixtral"  # latent attention goes by other names
    model = zoo.bridge(family)
    hand = RowsByHand(model, family, unit)
    monkeypatch.setattr(rows_module, "_ROWS", 7)
    for words, largest, top in ((WORDS[:1], True, None), (WORDS, True, 9), (WORDS, False, 9), (WORDS[1:], False, None)):
        table = tlsv.find(model, words if len(words) > 1 else words[0], unit=unit, by=by, top=top, largest=largest)
        assert len(table) == (top or len(hand.labels))
        assert table["word"].tolist() == [f"w{i}" for i in table["token_id"]]
        assert table.attrs == {"by": by, "searched": len(hand.labels)}
        check(table, hand, by, words, largest)


@pytest.mark.parametrize("unit", ["ffn_neuron", "attn_neuron"])
@pytest.mark.parametrize("family", [*FAMILIES, *zoo.slow(*SEVERAL[1:])])
def test_similar_is_brute_force(family: str, unit: str) -> None:
    """Cosines of rows as they enter the residual stream; the row itself is left out."""
    model = zoo.bridge(family)
    hand = RowsByHand(model, family, unit)
    directions = hand.rows / hand.rows.norm(dim=1, keepdim=True)
    for label in (hand.labels[3], hand.labels[-1]):
        own = hand.labels.index(label)
        cosines = directions @ directions[own]
        others = [i for i in range(len(cosines)) if i != own]
        table = tlsv.similar(model, label, top=None)
        assert sorted(table["label"]) == sorted(hand.labels[i] for i in others)
        found = dict(zip(table["label"], table["cosine"], strict=True))
        assert max(abs(found[hand.labels[i]] - float(cosines[i])) for i in others) < CLOSE
        assert table["cosine"].is_monotonic_decreasing
        few = tlsv.similar(model, label, top=4)
        assert few.equals(table.head(4))


def test_columns() -> None:
    """What tells rows apart, and the columns of the question."""
    dense, experts = zoo.bridge("llama"), zoo.bridge("mixtral")
    asked = ["word", "token_id", "value", "rank"]
    assert list(tlsv.find(dense, "w9", top=2)) == ["label", "layer", "neuron", *asked]
    assert list(tlsv.find(dense, "w9", top=2, unit="attn_neuron")) == ["label", "layer", "head", "dim", *asked]
    table = tlsv.find(experts, ["w9", 12], top=2)
    assert list(table) == ["label", "layer", "expert", "neuron", *asked]
    row = table.iloc[0]
    assert row["label"] == f"L{row['layer']}E{row['expert']}N{row['neuron']}"
    assert list(tlsv.similar(experts, row["label"], top=2)) == ["label", "layer", "expert", "neuron", "cosine"]
    assert list(tlsv.similar(dense, "L1H2D3", top=2)) == ["label", "layer", "head", "dim", "cosine"]


def test_equal_rows_come_in_the_models_order() -> None:
    """Copies of a row have its value, and cosine 1 with it; each is listed once."""
    model = zoo.bridge("llama")
    with torch.no_grad():
        for layer in (0, 1):
            W = model.blocks[layer].mlp.out.original_component.weight  # [d_model, neuron]
            W[:, 5:9] = model.blocks[0].mlp.out.original_component.weight[:, 5:6].clone()
    copies = [f"L{layer}N{n}" for layer in (0, 1) for n in range(5, 9)]
    word = int(tlsv.trace(model, [5, 6, 7], 9).vocabulary("L0N5", by="cosine")["token_id"][0])
    table = tlsv.find(model, word, top=None)
    assert table[table["label"].isin(copies)]["label"].tolist() == copies
    for own in ("L0N7", "L1N8"):
        similar = tlsv.similar(model, own, top=7)
        assert similar["label"].tolist() == [label for label in copies if label != own]
        assert similar["cosine"].tolist() == pytest.approx([1.0] * 7, abs=1e-6)


@pytest.mark.parametrize("shape", ["tied", *zoo.slow("one band", "four bands untied")])
@pytest.mark.parametrize("by", ["cosine", "bs_value"])
def test_an_adaptive_softmax(shape: str, by: Any, tmp_path: Path) -> None:
    """A word of any band; its rank is among its band's words, and its cosine seen from their mean."""
    reference = fairseq.Reference(fairseq.make_checkpoint(**fairseq.SHAPES.get(shape, {})))
    checkpoint = fairseq.make_checkpoint(**fairseq.SHAPES.get(shape, {}))
    model = tlsv.baevski18.load(*fairseq.write(tmp_path, checkpoint), device="cpu", dtype=torch.float64)
    rows = torch.cat([reference.model[f"layers.{layer}.fc2.weight"].T for layer in (0, 1)])
    labels = [f"L{layer}N{n}" for layer in (0, 1) for n in range(20)]
    head, *bands = reference.scores(torch.eye(32, dtype=torch.float64))
    columns = [head[:, : len(reference.words[0])], *bands]
    values = reference.bs_values(rows)
    if by == "cosine":
        centred = torch.cat([U - U.mean(1, keepdim=True) for U in columns], 1)
        values = rows @ centred / (rows.norm(dim=1, keepdim=True) * centred.norm(dim=0))
    for words in ([3], [20], [60], [3, 20, 60]):
        best, which = values[:, words].max(1)
        order = best.sort(descending=True).indices[:6].tolist()
        table = tlsv.find(model, words, top=6, by=by)
        assert table["label"].tolist() == [labels[i] for i in order]
        assert table["value"].tolist() == pytest.approx(best[order].tolist(), abs=1e-9)
        for row, i in zip(table.itertuples(), order, strict=True):
            token = words[int(which[i])]
            band = reference.band(token)
            start = reference.starts[band]
            own = values[i, start : start + len(reference.words[band])]
            assert (row.token_id, row.rank) == (token, 1 + int((own > values[i, token]).sum()))
            assert len(columns) == 1 or row.band == band
        assert ("band" in table) == (len(columns) > 1)


def test_rows_of_a_hybrid_are_of_the_layers_that_have_them() -> None:
    """Attention's rows in attention's layers; FFN neurons everywhere."""
    model = zoo.bridge("lfm2")
    attn = tlsv.find(model, 9, unit="attn_neuron", top=None)
    assert set(attn["layer"]) < set(tlsv.find(model, 9, top=None)["layer"])


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.bridge("llama")


HOSTILE = ["", " ", "w9 w10", "nothing", "\x1b[31mred", "a" * 5000, "\udcff", "\0", "w9\n" * 400, "🦙"]


@pytest.mark.parametrize("words", HOSTILE, ids=lambda word: ascii(word)[:12])
def test_hostile_words_are_refused(model: Any, words: str) -> None:
    """One sentence that calls it a word; nothing that a terminal would obey, and not too much of it."""
    with pytest.raises(ValueError, match=r"the word|valid Unicode") as caught:
        tlsv.find(model, words)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2000
    assert "target" not in message


def test_what_is_asked_wrongly_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each argument by name; the call that a message advises is made."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for words, message in (
        ([], "empty list"),
        ([9, "w9"], "twice"),
        (61, "outside the vocabulary"),
        (True, "a word is"),
    ):
        with pytest.raises(ValueError, match=message):
            tlsv.find(model, words)
    for top in (0, -3, 2.5, "9"):
        with pytest.raises(ValueError, match="top is a positive number"):
            tlsv.find(model, 9, top=top)
        with pytest.raises(ValueError, match="top is a positive number"):
            tlsv.similar(model, "L0N1", top=top)
    for unit in ("head", "mlp", None):
        with pytest.raises(ValueError, match="unit is 'ffn_neuron'"):
            tlsv.find(model, 9, unit=unit)
    with pytest.raises(ValueError, match=r"trace.writes\(labels, by='prob_increase'\)"):
        tlsv.find(model, 9, by="prob_increase")
    tlsv.trace(model, [5, 6], 9).writes(["L0N1"], by="prob_increase")
    with pytest.raises(ValueError, match="by is 'cosine'"):
        tlsv.find(model, 9, by="loudness")
    for label, message in (
        ("L1H2", "is no neuron.*'L24N1005'"),
        ("0_mlp_out", "is no neuron"),
        ("L0N48", "neuron 48 is not below 48"),
        ("L2N1", "layer"),
        ("L0E1N1", "dense"),
        ("the neuron", "is not a label"),
        (7, "is not a label"),
    ):
        with pytest.raises(ValueError, match=message):
            tlsv.similar(model, label)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("jetmoe", "cannot be taken apart"),
        ("openai_gpt", "pre-norm model"),
        ("opt_post_norm", "opt_post_norm"),
        ("nemotron_h", "no attention sublayer"),
        ("modernbert_decoder", "prediction_head"),
    ],
)
def test_models_that_cannot_be_taken_apart_are_refused(family: str, message: str) -> None:
    """Rows are read where they add to the stream that is read out, which a short run is held to."""
    model = zoo.bridge(family)
    for ask in (lambda: tlsv.find(model, 9), lambda: tlsv.similar(model, "L0N3")):
        with pytest.raises(tlsv.UnsupportedModelError, match=message):
            ask()


def test_rows_without_columns_to_read_them_by_are_refused(model: Any) -> None:
    """Where the unembedding can only be called; rows alike are found all the same."""

    class Own(torch.nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T

    own = zoo.bridge("llama")
    module = Own(own.unembed.original_component.weight)
    own.unembed._modules["_original_component"] = module
    own.original_model.lm_head = module
    for by in ("cosine", "bs_value"):
        with pytest.raises(tlsv.UnsupportedModelError, match="can only be called"):
            tlsv.find(own, 9, by=by)
    assert tlsv.similar(own, "L0N3", top=5).equals(tlsv.similar(model, "L0N3", top=5))


@pytest.mark.hooked
def test_of_hooked_transformers() -> None:
    """Layers without FFN neurons, and no final norm."""
    model = zoo.hooked("attn_only")
    with pytest.raises(tlsv.UnsupportedModelError, match="no FFN neurons"):
        tlsv.find(model, 9)
    plain = zoo.hooked("no_norm")
    W_U = plain.W_U.double().detach()
    centred = W_U - W_U.mean(1, keepdim=True)
    rows = torch.cat([block.mlp.W_out.double().detach() for block in plain.blocks])
    cosines = rows @ centred[:, 9] / (rows.norm(dim=1) * centred[:, 9].norm())
    order = cosines.sort(descending=True).indices[:5].tolist()
    assert tlsv.find(plain, 9, top=5)["label"].tolist() == [f"L{i // 48}N{i % 48}" for i in order]


@pytest.mark.real_model
@pytest.mark.slow
def test_the_embedded_model_against_all_its_weights() -> None:
    """Every FFN row of SmolLM2 with two words, in float64 from Hugging Face's own weights."""
    model = tlsv.load_model()
    hf = model.original_model if hasattr(model, "original_model") else None
    assert hf is not None
    U = hf.lm_head.weight.detach().double()
    ids = [int(model.to_tokens(word, prepend_bos=False)[0, 0]) for word in (" capital", " Paris")]
    gain = hf.model.norm.weight.detach().double()
    centred = U - U.mean(0)
    centred = centred / centred.norm(dim=1, keepdim=True)
    rows = torch.cat([layer.mlp.down_proj.weight.detach().T.double() * gain for layer in hf.model.layers])
    rows = rows / rows.norm(dim=1, keepdim=True)
    for largest in (True, False):
        table = tlsv.find(model, [" capital", " Paris"], top=40, largest=largest)
        values = rows @ centred[ids].T
        best, which = (values if largest else -values).max(1)
        order = best.sort(descending=True).indices[:40]
        assert table["label"].tolist() == [f"L{int(i) // 1536}N{int(i) % 1536}" for i in order]
        assert table["token_id"].tolist() == [ids[int(which[i])] for i in order]
        for row, i in zip(table.itertuples(), order.tolist(), strict=True):
            own, word = rows[i] @ centred.T, ids[int(which[i])]
            ahead = (own > own[word] + 1e-6).sum() if largest else (own < own[word] - 1e-6).sum()
            near = ((own - own[word]).abs() <= 1e-6).sum()
            assert 1 + ahead <= row.rank <= ahead + near
        similar = tlsv.similar(model, "L24N1005", top=5)
        down = torch.cat([layer.mlp.down_proj.weight.detach().T.double() for layer in hf.model.layers])
        own = 24 * 1536 + 1005
        cosines = torch.nn.functional.cosine_similarity(down, down[own][None])
        cosines[own] = -2
        assert similar["label"].tolist() == [f"L{int(i) // 1536}N{int(i) % 1536}" for i in cosines.topk(5).indices]
