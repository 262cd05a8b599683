"""What components write, by three readings: brute force over families, signs, every table's words, refusals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from helpers import baevski18_reference as fairseq
from helpers import zoo
from helpers.brute_experts import BruteForceMixture
from helpers.brute_force import BruteForce, LinearMap
from helpers.comparison import TARGET, UNITS
from torch import Tensor

import tl_subvalues as tlsv

pytestmark = [pytest.mark.bridge, pytest.mark.any_release]
BY = ("cosine", "bs_value", "prob_increase")
FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox_parallel", "granite", "cohere", "mixtral", "qwen2_moe"]
VOCAB = 61


class Case:
    """A model, its run by brute force, and what any vector writes by each reading, in float64."""

    def __init__(self, family: str, tokens: Tensor) -> None:
        self.model, self.tokens = zoo.bridge(family), tokens
        kind = BruteForceMixture if family in zoo.MIXTURES else BruteForce
        self.brute = kind(self.model, family, tokens)
        self.last = self.brute.n_positions - 1
        self.columns = LinearMap(self.model.unembed, self.brute.d_model).matrix  # [d_model, vocab]

    def trace(self, scale: str = "frozen") -> tlsv.Trace:
        return tlsv.trace(self.model, self.tokens, TARGET, scale=scale)

    def components(self, unit: str, at: int | None = None) -> Iterator[tuple[str, int, str, Tensor]]:
        """Label, layer, sublayer and vector of a dozen components, of what they add at a position."""
        at = self.last if at is None else at
        for layer in range(self.brute.n_layers):
            if unit == "sublayer":
                for sublayer in ("attn", "mlp"):
                    yield f"{layer}_{sublayer}_out", layer, sublayer, self.brute.output(layer, sublayer, at)
            else:
                parts = list(self.brute.parts(unit, layer, at).items())
                parts = [(label, vector) for label, vector in parts if vector.any()]
                for label, vector in parts[:: max(1, len(parts) // 6)]:
                    yield label, layer, "mlp" if unit == "ffn_neuron" else "attn", vector

    def values(self, vector: Tensor, by: str, layer: int, sublayer: str, scale: str = "frozen") -> Tensor:
        """A value of every word."""
        norm = self.brute.final_norm
        assert norm is not None
        lin = vector @ norm.matrix
        if by == "cosine":
            centred = (self.columns - self.columns.mean(1, keepdim=True)) * self.brute.factor
            return lin @ centred / (lin.norm() * centred.norm(dim=0))
        if by == "bs_value":
            return lin / norm.scale(self.brute.final(self.last)[None])[0] @ self.columns * self.brute.factor
        x = self.brute.residual(layer, sublayer, self.last)
        before, after = self.brute.log_probs(torch.stack([x, x + vector]), self.last, scale).exp()
        return after - before


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tokens: Tensor) -> Case:
    return Case(request.param, tokens)


def by_word(table: Any, label: str, by: str) -> Tensor:
    """Values of all words by their ids, held to the table's order."""
    mine = table[table["label"] == label]
    assert mine["rank"].tolist() == list(range(1, VOCAB + 1))
    assert mine[by].is_monotonic_decreasing
    assert sorted(mine["token_id"]) == list(range(VOCAB))
    return torch.tensor(mine.sort_values("token_id")[by].to_numpy())


@pytest.mark.parametrize("by", BY)
def test_what_components_write_is_what_brute_force_says(case: Case, by: Any) -> None:
    """Every unit's components, all words, in this run's sign; the first k of them; both scales where it matters."""
    for scale in ("frozen", "recomputed") if by == "prob_increase" else ("frozen",):
        trace = case.trace(scale)
        for unit in UNITS:
            chosen = list(case.components(unit))
            labels = [label for label, *_ in chosen]
            whole, few = trace.writes(labels, k=1000, by=by), trace.writes(labels, by=by)
            assert list(whole) == ["label", "rank", "token", "token_id", by]
            assert few["label"].drop_duplicates().tolist() == labels
            for label, layer, sublayer, vector in chosen:
                expected = case.values(vector, by, layer, sublayer, scale)
                found = by_word(whole, label, by)
                bound = 2e-5 * max(1.0, float(expected.abs().max()))
                assert (found - expected).abs().max() < bound, (label, scale)
                first = few[few["label"] == label]
                assert first[by].tolist() == found.sort(descending=True).values[:5].tolist(), (label, scale)
                assert first["token"].tolist() == [f"w{i}" for i in first["token_id"]]


def test_rows_are_read_as_stored_and_writes_as_they_are_added(case: Case) -> None:
    """A neuron with a negative coefficient writes what stands at the bottom of its row."""
    trace = case.trace()
    table = trace.ffn_neurons(top=None)
    for negative in (True, False):
        mine = table[(table["coefficient"] < 0) == negative].head(5)
        assert len(mine) == 5
        rows, written = (f(mine["label"].tolist(), k=VOCAB, by="cosine") for f in (trace.vocabulary, trace.writes))
        assert list(rows) == ["label", "side", "rank", "token", "token_id", "cosine"]
        for label in mine["label"]:
            here = written[written["label"] == label]
            top, bottom = (rows[(rows["label"] == label) & (rows["side"] == side)] for side in ("top", "bottom"))
            side, sign = (bottom, -1) if negative else (top, 1)
            assert here["cosine"].tolist() == pytest.approx((sign * side["cosine"]).tolist(), abs=1e-6)
            assert bottom["token_id"].tolist()[::-1] == top["token_id"].tolist()
    label = table["label"][0]
    assert list(trace.vocabulary(label)) == ["side", "rank", "token", "token_id", "bs_value"]
    found, expected = trace.vocabulary([label], by="prob_increase"), trace.writes([label], k=10, by="prob_increase")
    assert found[found["side"] == "top"]["token_id"].tolist() == expected["token_id"].tolist()


def test_components_of_other_positions(case: Case) -> None:
    """A label that says where it is added is read as it is there; what it does at the end is another question."""
    trace = case.trace()
    for unit, joint in (("ffn_neuron", "@"), ("head", "@>"), ("head_position", ">"), ("sublayer", "@")):
        chosen = list(case.components(unit, at=2))
        labels = [f"{label}{joint}2" for label, *_ in chosen]
        table = trace.writes(labels, k=VOCAB)
        for label, (_, layer, sublayer, vector) in zip(labels, chosen, strict=True):
            expected = case.values(vector, "cosine", layer, sublayer)
            assert (by_word(table, label, "cosine") - expected).abs().max() < 2e-5, label
        with pytest.raises(ValueError, match=r"another position than this trace's.*'cosine'"):
            trace.writes(labels, by="prob_increase")


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.bridge("llama")


@pytest.fixture(scope="module")
def trace(model: Any, tokens: Tensor) -> tlsv.Trace:
    return tlsv.trace(model, tokens, TARGET)


def test_every_table_takes_words(model: Any, trace: tlsv.Trace, tokens: Tensor) -> None:
    """`words=k` adds the k words that `writes` gives for each row, to the tables of a trace and of several."""
    batch = tlsv.trace_batch(model, [tokens[0], tokens[0, 2:]], [TARGET, 5])
    for name in ("layers", "heads", "head_positions", "attn_neurons", "ffn_neurons"):
        keywords = {} if name == "layers" else {"top": 4}
        plain, table = getattr(trace, name)(**keywords), getattr(trace, name)(**keywords, words=3)
        assert table.drop(columns="writes").equals(plain)
        words = trace.writes(plain, k=3).groupby("label", sort=False)["token"].agg(list)
        assert dict(zip(table["label"], table["writes"], strict=True)) == words.to_dict()
        together = getattr(batch, name)(**keywords, words=3)
        for number, one in enumerate(batch):
            own = getattr(one, name)(**keywords, words=3)
            assert together[together["prompt"] == number]["writes"].tolist() == own["writes"].tolist()
    for unit in UNITS:
        table = trace.effects(unit, top=6, words=2)
        assert (table["position"] < 6).any()
        words = trace.writes(table, k=2).groupby("label", sort=False)["token"].agg(list)
        assert dict(zip(table["label"], table["writes"], strict=True)) == words.to_dict()
    assert "certificate" in trace.ffn_neurons(top=4, words=1).attrs


def test_small_vectors_keep_their_digits(model: Any, trace: tlsv.Trace) -> None:
    """A millionth of a vector raises every word by a millionth, in float32 too: p (bs − E bs) to first order."""
    from tl_subvalues.words.readings import run_reading

    v = torch.stack([trace.run.sites[1].residual, trace.run.sites[2].residual.flip(0)])
    residuals = torch.stack([site.residual for site in trace.run.sites])
    reading = run_reading(trace.readout, "prob_increase", residuals)
    ((_, found),) = reading.panels(v * 1e-6, torch.tensor([1, 1]))
    p = trace.readout.log_probs(residuals[1]).double().exp()
    bs = trace.readout.bs_values(v).double()
    expected = p * (bs - (bs @ p)[:, None]) * 1e-6
    assert (found.double() - expected).abs().max() < 1e-4 * expected.abs().max()


def test_what_adds_nothing_writes_nothing(tmp_path: Path) -> None:
    """A neuron whose coefficient is 0 has no rows, and an empty list in a table."""
    checkpoint = fairseq.make_checkpoint()
    model = tlsv.baevski18.load(*fairseq.write(tmp_path, checkpoint), device="cpu")
    trace = tlsv.trace(model, [2, 9, 33, 58, 12, 4], 30)
    table = trace.ffn_neurons(top=None, words=2)
    silent = table["coefficient"] == 0
    assert 5 < silent.sum() < 35
    assert table["writes"].map(len).tolist() == [0 if none else 2 for none in silent]
    assert set(trace.writes(table, k=1)["label"]) == set(table["label"][~silent])
    assert trace.writes(table[silent]).empty


@pytest.mark.parametrize("shape", ["tied", *zoo.slow("one band", "four bands untied")])
def test_an_adaptive_softmax_is_read_band_by_band(shape: str, tmp_path: Path) -> None:
    """Cosines are with columns seen from their band's mean, in the residual stream's space; increases are of all."""
    checkpoint = fairseq.make_checkpoint(**fairseq.SHAPES.get(shape, {}))
    reference = fairseq.Reference(checkpoint)
    model = tlsv.baevski18.load(*fairseq.write(tmp_path, checkpoint), device="cpu", dtype=torch.float64)
    prompt = [2, 9, 33, 58, 12, 4]
    trace = tlsv.trace(model, prompt, 30)
    table = trace.ffn_neurons(top=None)
    table = table[table["coefficient"] != 0].head(4)
    _, activations = reference.residuals(prompt)
    unit = torch.eye(32, dtype=torch.float64)
    head, *bands = reference.scores(unit)
    columns = [head[:, : len(reference.words[0])], *bands]  # [d_model, word], of each band
    for row in table.itertuples():
        W = reference.model[f"layers.{row.layer}.fc2.weight"][:, row.neuron]
        vector = float(activations[row.layer][-1, row.neuron]) * W
        centred = [U - U.mean(1, keepdim=True) for U in columns]
        cosine = torch.cat([vector @ U / (vector.norm() * U.norm(dim=0)) for U in centred])
        found = trace.writes(row.label, k=VOCAB)
        torch.testing.assert_close(by_word(found, row.label, "cosine"), cosine, atol=1e-9, rtol=0)
        if len(columns) > 1:
            assert found["band"].tolist() == [reference.band(token) for token in found["token_id"]]
        x = next(s.residual for s in trace.run.sites if (s.layer, s.sublayer) == (row.layer, "mlp"))
        before, after = reference.log_probs(torch.stack([x, x + vector])).exp()
        raised = by_word(trace.writes(row.label, k=VOCAB, by="prob_increase"), row.label, "prob_increase")
        torch.testing.assert_close(raised, after - before, atol=1e-12, rtol=0)


@pytest.mark.hooked
def test_of_hooked_transformers(tokens: Tensor) -> None:
    """Without a final norm, and with a soft cap."""
    for variant in ("no_norm", "gemma2_like"):
        model = zoo.hooked(variant)
        brute = BruteForce(model, variant, tokens)
        trace = tlsv.trace(model, tokens, TARGET)
        lin = (
            brute.output(1, "mlp", 6)
            if brute.final_norm is None
            else brute.output(1, "mlp", 6) @ brute.final_norm.matrix
        )
        W_U = model.W_U.double().detach()
        centred = W_U - W_U.mean(1, keepdim=True)
        expected = lin @ centred / (lin.norm() * centred.norm(dim=0))
        assert (by_word(trace.writes("1_mlp_out", k=VOCAB), "1_mlp_out", "cosine") - expected).abs().max() < 1e-5


def test_what_is_asked_wrongly_is_refused(trace: tlsv.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each, which says what to ask for instead; what it says is then asked for."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for by in ("cos", None, 3):
        with pytest.raises(ValueError, match="by is 'cosine', 'bs_value' or 'prob_increase'"):
            trace.writes("L0N1", by=by)
    for k in (0, -1, 2.5, True, "3", None):
        with pytest.raises(ValueError, match="k is a positive number"):
            trace.writes("L0N1", k=k)
        with pytest.raises(ValueError, match="k is a positive number"):
            trace.vocabulary("L0N1", k=k)
    with pytest.raises(ValueError, match="words is a positive number"):
        trace.ffn_neurons(top=3, words=0)
    with pytest.raises(ValueError, match="no labels"):
        trace.writes([])
    with pytest.raises(ValueError, match=r"what a component itself does.*through= reads directions"):
        trace.vocabulary("L0N1", by="prob_increase", through="L1H2")
    trace.vocabulary("L0N1", by="cosine", through="L1H2")
    with pytest.raises(ValueError, match="leave it out"):
        trace.effects("embedding", words=3)
    trace.effects("embedding")
    table = trace.ffn_neurons(top=3)
    with pytest.raises(ValueError, match="of another trace"):
        tlsv.trace(trace.model, [5, 6, 7], TARGET).writes(table)


def test_words_without_columns_are_refused(tokens: Tensor) -> None:
    """An unembedding that can only be called has bs-values and increases, and no cosines."""

    class Own(torch.nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    plain, own = zoo.bridge("llama"), zoo.bridge("llama")
    module = Own(own.unembed.original_component.weight)
    own.unembed._modules["_original_component"] = module
    own.original_model.lm_head = module
    traces = [tlsv.trace(model, tokens, TARGET) for model in (plain, own)]
    with pytest.raises(tlsv.UnsupportedModelError, match=r"can only be called.*trace.writes\(labels, by='bs_value'\)"):
        traces[1].writes("L0N1")
    for by in ("bs_value", "prob_increase"):
        expected, found = (trace.writes(["L0N1", "L1H2"], by=by) for trace in traces)
        assert found["token_id"].tolist() == expected["token_id"].tolist()
        assert found[by].tolist() == pytest.approx(expected[by].tolist(), abs=1e-5)


@pytest.mark.real_model
@pytest.mark.slow
def test_the_case_study_reads_like_words() -> None:
    """L28N625 and L23H4@3, whose bs-values read noqa and pylint, or French by luck (method of the paper, and ours)."""
    trace = tlsv.trace(tlsv.load_model(), "The capital of France is", " Paris")
    words = trace.writes(["L28N625", "L23H4@3", "L24N1005"]).groupby("label", sort=False)["token"].agg(list)
    assert words["L28N625"] == [" Lok", " Serbia", " Colombia", " Kiev", " Peru"]
    assert words["L23H4@3"] == [" France", " Quebec", " Jacques", "France", " Pierre"]
    assert " capitals" in words["L24N1005"]  # whose coefficient is negative
    table = trace.writes("L28N625", by="bs_value")
    assert table["token"].tolist()[0] == " noqa"
