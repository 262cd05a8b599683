"""Prompts, targets, positions, scales: what is taken, what is refused, and what the refusals advise."""

import jaxtyping
import pytest
import tokenizers
import torch
import transformers
from helpers import zoo

import tl_subvalues as tlsv

TARGET = 9
WORDS = "w3 w4 w5"
PROMPT = list(range(3, 10))


@pytest.fixture(scope="module")
def model():
    return zoo.model("llama")


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """As users have it: annotations are not enforced, so that what speaks is the package's own check."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refusal(model, prompt, target=TARGET, error=ValueError, **keywords) -> str:
    with pytest.raises(error) as caught:
        tlsv.trace(model, prompt, target, **keywords)
    return str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        [3, 4, 5],
        (3, 4, 5),
        torch.tensor([3, 4, 5]),
        torch.tensor([[3, 4, 5]]),
        [[3, 4, 5]],
        torch.tensor([3, 4, 5]).int(),
    ],
    ids=["list", "tuple", "[pos]", "[1, pos]", "nested list", "int32"],
)
def test_token_ids_are_taken_as_they_are(model, prompt):
    """Ids in any of these forms are the prompt; no BOS is added to ids."""
    trace = tlsv.trace(model, prompt, TARGET)
    assert trace.tokens.tolist() == [3, 4, 5]
    assert trace.str_tokens == ["w3", "w4", "w5"]


@pytest.mark.parametrize(("prepend_bos", "expected"), [(True, [0, 3, 4, 5]), (False, [3, 4, 5]), (None, None)], ids=str)
def test_prepend_bos_goes_to_the_models_own_tokenizer(model, prepend_bos, expected):
    """True and False add or leave out the BOS; None is whatever `model.to_tokens` does by itself."""
    trace = tlsv.trace(model, WORDS, TARGET, prepend_bos=prepend_bos)
    assert trace.tokens.tolist() == (model.to_tokens(WORDS)[0].tolist() if expected is None else expected)


def test_the_models_own_default_for_the_bos_is_followed():
    """Two models that differ in their default differ in None, and in nothing else."""
    model = zoo.model("llama")
    found = []
    for default in (True, False):
        model.cfg.default_prepend_bos = default
        found.append(tlsv.trace(model, WORDS, TARGET).tokens.tolist())
        assert tlsv.trace(model, WORDS, TARGET, prepend_bos=True).tokens.tolist() == [0, 3, 4, 5]
    assert found == [[0, 3, 4, 5], [3, 4, 5]]


def test_prepend_bos_is_for_text(model):
    """With ids it is refused, with the advice to put the BOS in front, which works."""
    assert "token ids yourself" in refusal(model, [3, 4], prepend_bos=True)
    assert tlsv.trace(model, [0, 3, 4], TARGET).tokens.tolist() == [0, 3, 4]
    assert tlsv.trace(model, [3, 4], TARGET, prepend_bos=False).tokens.tolist() == [3, 4]


@pytest.mark.parametrize("prompt", ["", [], (), torch.zeros(0).long(), torch.zeros(1, 0).long()], ids=repr)
def test_an_empty_prompt_is_refused(model, prompt):
    """Empty text (BOS or not) and empty ids are refused; the BOS alone, which the message advises, is a prompt."""
    for prepend_bos in (None, False) if not isinstance(prompt, str) else (None, False, True):
        message = refusal(model, prompt, prepend_bos=prepend_bos)
        assert "empty" in message
        assert "BOS" in message
    trace = tlsv.trace(model, [model.tokenizer.bos_token_id], TARGET)
    assert len(trace.heads()) == 8


@pytest.mark.parametrize("prompt", [[[3, 4], [5, 6]], torch.zeros(2, 3).long(), torch.zeros(1, 1, 3).long()], ids=repr)
def test_a_batch_of_prompts_is_refused(model, prompt):
    """One prompt is needed; the message shows the shape and those that are taken."""
    message = refusal(model, prompt)
    assert "one prompt is needed" in message
    assert str(tuple(torch.as_tensor(prompt).shape)) in message
    assert "[1, pos]" in message
    assert tlsv.trace(model, torch.as_tensor(prompt).reshape(-1)[None], TARGET)


def test_a_list_of_texts_is_refused(model):
    """Texts come one by one, as the message says."""
    texts = [WORDS, "w6 w7"]
    message = refusal(model, texts)
    assert "list of 2 texts" in message
    assert "one by one" in message
    assert [len(tlsv.trace(model, text, TARGET).tokens) for text in texts] == [4, 3]


@pytest.mark.parametrize("prompt", [[True, False], [3.0, 4.0], torch.tensor([3.5]), torch.tensor([1j])], ids=repr)
def test_ids_that_are_no_integers_are_refused(model, prompt):
    """Booleans and floating-point numbers are no token ids; the message names what was given."""
    message = refusal(model, prompt)
    assert "integers" in message
    assert str(torch.as_tensor(prompt).dtype) in message


@pytest.mark.parametrize(
    "prompt", [None, {"text": WORDS}, object(), [[3, 4], [5]], b"w3"], ids=lambda prompt: type(prompt).__name__
)
def test_what_is_no_prompt_is_refused(model, prompt):
    """Anything else is refused by its type, beside the types that are taken."""
    message = refusal(model, prompt)
    assert type(prompt).__name__ in message
    assert "text or a list or tensor of token ids" in message


@pytest.mark.parametrize("outside", [-1, zoo.VOCAB, 10**9])
def test_prompt_ids_outside_the_vocabulary_are_refused(model, outside):
    """The message names the ids and the range."""
    message = refusal(model, [3, outside, 4])
    assert f"[{outside}]" in message
    assert f"0 to {zoo.VOCAB - 1}" in message
    assert tlsv.trace(model, [0, zoo.VOCAB - 1], TARGET).str_tokens == ["w0", f"w{zoo.VOCAB - 1}"]


@pytest.mark.parametrize("prompt", [[3] * 65, "w3 " * 70], ids=["ids", "text"])
def test_a_prompt_longer_than_the_context_is_refused(model, prompt):
    """Nothing is cut off in silence: the message names both lengths."""
    message = refusal(model, prompt, prepend_bos=False)
    assert f"{len(prompt) if isinstance(prompt, list) else 70} tokens" in message
    assert "64" in message
    assert tlsv.trace(model, [3] * 64, TARGET).position == 63


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("w5", 5),
        (" w5", 5),
        (5, 5),
        (0, 0),
        (zoo.VOCAB - 1, zoo.VOCAB - 1),
        (torch.tensor(5), 5),
        (torch.tensor([5]), 5),
    ],
    ids=repr,
)
def test_a_target_is_text_of_one_token_or_an_id(model, target, expected):
    """No BOS is counted for a target, and an id may come as a tensor of one number."""
    trace = tlsv.trace(model, WORDS, target)
    assert (trace.target_id, trace.target_token) == (expected, f"w{expected}")


def test_a_target_of_several_tokens_shows_its_pieces(model):
    """The message shows each piece and its id, either of which is a target that works."""
    message = refusal(model, WORDS, "w3 w4")
    assert "2 tokens" in message
    for piece, i in (("w3", 3), ("w4", 4)):
        assert f"{piece!r} ({i})" in message
        assert tlsv.trace(model, WORDS, piece).target_id == tlsv.trace(model, WORDS, i).target_id == i


def test_a_target_that_lacks_its_space_is_told_so(tmp_path):
    """Where ' ab' is one token and 'ab' is two, the message says so, and what it advises works."""
    pieces = [("<unk>", -9.0), ("<s>", -9.0), ("a", -2.0), ("b", -2.0), (" ab", -1.0), ("cd", -1.0), (" ", -3.0)]
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0)),
        bos_token="<s>",
        eos_token="<s>",
        pad_token="<s>",
        unk_token="<unk>",
    )
    made.save_pretrained(tmp_path)
    model = zoo.model("llama")
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    message = refusal(model, [2, 3], "ab")
    assert "'a' (2) + 'b' (3)" in message
    assert "' ab' is one token (4)" in message
    assert tlsv.trace(model, [2, 3], " ab").target_id == 4
    assert "'cd' is one token (5)" in refusal(model, [2, 3], "cd ")
    assert tlsv.trace(model, [2, 3], "cd").target_id == 5


def test_an_empty_target_is_refused(model):
    """Text of no token is no target, and the message says what is."""
    message = refusal(model, WORDS, "")
    assert "no tokens" in message
    assert "token id" in message


@pytest.mark.parametrize("target", [-1, zoo.VOCAB, torch.tensor(zoo.VOCAB)], ids=repr)
def test_a_target_outside_the_vocabulary_is_refused(model, target):
    """Negative ids do not count from the end; the message names id and range."""
    message = refusal(model, WORDS, target)
    assert f"[{int(target)}]" in message
    assert f"0 to {zoo.VOCAB - 1}" in message


@pytest.mark.parametrize(
    "target", [True, 5.0, torch.tensor(5.0), torch.tensor(True), [True], [5.0], {"a": 5}], ids=repr
)
def test_what_is_no_target_is_refused(model, target):
    """Booleans and floating-point numbers, alone or in a list, and other things are refused by their type."""
    message = refusal(model, WORDS, target)
    assert "token id or text of one token" in message


def test_a_model_without_a_tokenizer_takes_ids():
    """Text is refused with that advice; ids work, and are shown as <id>."""
    model = zoo.model("llama")
    model.tokenizer = None
    message = refusal(model, WORDS)
    assert "no tokenizer" in message
    assert "pass token ids" in message
    assert "no tokenizer" in refusal(model, [3, 4], "w5")
    trace = tlsv.trace(model, [3, 4], TARGET)
    assert (trace.str_tokens, trace.target_token) == (["<3>", "<4>"], f"<{TARGET}>")
    assert set(trace.head_positions().token) == {"<3>", "<4>"}


# The other arguments.


@pytest.mark.parametrize("position", [7, 100, -8])
def test_a_position_out_of_range_is_refused(model, position):
    """Both ends are checked; the message shows the range, whose ends work."""
    message = refusal(model, PROMPT, position=position)
    assert f"position {position} is out of range" in message
    assert "-7 to 6" in message
    assert tlsv.trace(model, PROMPT, TARGET, position=-7).position == 0
    assert tlsv.trace(model, PROMPT, TARGET, position=6).position == 6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("position", [1.5, None, "last", True], ids=repr)
def test_a_position_that_is_no_integer_is_refused(model, position):
    """A position is one integer: anything else is refused by a sentence that says 'position'."""
    assert "position" in refusal(model, PROMPT, position=position)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("scale", ["lens", "", None, 1.0], ids=repr)
def test_a_scale_of_another_name_is_refused(model, scale):
    """The message names both that there are, and both work."""
    message = refusal(model, PROMPT, scale=scale)
    for name in ("frozen", "recomputed"):
        assert repr(name) in message
        assert tlsv.trace(model, PROMPT, TARGET, scale=name).scale == name


@pytest.mark.parametrize("top", [0, -1])
def test_a_top_of_nothing_is_refused(model, top):
    """`top` is a positive number, or None for all."""
    with pytest.raises(ValueError, match="positive number or None"):
        tlsv.trace(model, PROMPT, TARGET).heads(top=top)


def test_labels_that_are_not_in_the_trace_are_refused(model):
    """Each index out of range is named; k is a positive number."""
    trace = tlsv.trace(model, PROMPT, TARGET)
    for label in ("L2H0", "2_mlp_out", "L0H4", "L0H0@7", "L0H0D8@0", "L1N48", "L9N0"):
        with pytest.raises(ValueError, match=label):
            trace.vocabulary(label)
    with pytest.raises(ValueError, match="labels look like"):
        trace.vocabulary("neuron 5")
    with pytest.raises(ValueError, match="positive"):
        trace.vocabulary("L0H0", k=0)


@pytest.mark.hooked
def test_a_hooked_transformer_takes_the_same():
    """HookedTransformer: text, ids, BOS and refusals as for a bridge."""
    model = zoo.hooked("ln_gelu")
    assert tlsv.trace(model, WORDS, "w9", prepend_bos=False).tokens.tolist() == [3, 4, 5]
    assert tlsv.trace(model, WORDS, "w9", prepend_bos=True).tokens.tolist() == [0, 3, 4, 5]
    assert tlsv.trace(model, [3, 4], 9).tokens.tolist() == [3, 4]
    assert "'w3' (3) + 'w4' (4)" in refusal(model, WORDS, "w3 w4")
    assert "outside the vocabulary" in refusal(model, [zoo.VOCAB])
