"""What a component is called, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_subvalues.labels import (
    MIXERS,
    Component,
    attn_neuron_label,
    bias_label,
    ffn_neuron_label,
    head_label,
    head_position_label,
    labels_of,
    parse_label,
    sublayer_label,
)

pytestmark = pytest.mark.any_release

numbers = st.integers(min_value=0, max_value=10**6)
sublayers = st.sampled_from(["attn", "mlp", *MIXERS])


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (sublayer_label(24, "attn"), "24_attn_out"),
        (sublayer_label(24, "mlp"), "24_mlp_out"),
        (bias_label(24, "attn"), "24_attn_bias"),
        (bias_label(24, "mlp"), "24_mlp_bias"),
        (head_label(23, 4), "L23H4"),
        (head_position_label(23, 4, 3), "L23H4@3"),
        (attn_neuron_label(23, 4, 38, 3), "L23H4D38@3"),
        (ffn_neuron_label(24, 1005), "L24N1005"),
        (ffn_neuron_label(3, 10, expert=5), "L3E5N10"),
        (sublayer_label(0, "conv"), "0_conv_out"),
    ],
)
def test_labels_are_those_of_the_contract(made, expected):
    """Labels are TransformerLens's, extended by a source position and an index inside a head."""
    assert made == expected


@given(layer=numbers, sublayer=sublayers)
def test_sublayer_labels_round_trip(layer, sublayer):
    """A sublayer's label names its layer and its kind, nothing else."""
    assert parse_label(sublayer_label(layer, sublayer)) == Component("sublayer", layer, sublayer)


@given(layer=numbers, head=numbers)
def test_head_labels_round_trip(layer, head):
    """A head's label names its layer and head, and belongs to attention."""
    assert parse_label(head_label(layer, head)) == Component("head", layer, "attn", head=head)


@given(layer=numbers, head=numbers, position=numbers)
def test_head_position_labels_round_trip(layer, head, position):
    """A head at a source position names that position."""
    found = parse_label(head_position_label(layer, head, position))
    assert found == Component("head_position", layer, "attn", head=head, position=position)


@given(layer=numbers, head=numbers, dim=numbers, position=numbers)
def test_attn_neuron_labels_round_trip(layer, head, dim, position):
    """An attention neuron names layer, head, index and source position, none swapped for another."""
    found = parse_label(attn_neuron_label(layer, head, dim, position))
    assert found == Component("attn_neuron", layer, "attn", head=head, dim=dim, position=position)


def test_an_attention_neuron_at_all_source_positions():
    """Without @ it is that index of the head, whatever it reads."""
    assert parse_label("L23H4D38") == Component("attn_neuron", 23, "attn", head=4, dim=38, position=None)


@given(layer=numbers, neuron=numbers)
def test_ffn_neuron_labels_round_trip(layer, neuron):
    """An FFN neuron's label names its layer and neuron, and belongs to the FFN."""
    assert parse_label(ffn_neuron_label(layer, neuron)) == Component("ffn_neuron", layer, "mlp", neuron=neuron)


@given(layer=numbers, expert=numbers, neuron=numbers)
def test_expert_neuron_labels_round_trip(layer, expert, neuron):
    """A neuron of an expert names its expert too."""
    found = parse_label(ffn_neuron_label(layer, neuron, expert))
    assert found == Component("ffn_neuron", layer, "mlp", neuron=neuron, expert=expert)


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        " ",
        "Paris",
        "L",
        "L1",
        "LH4",
        "l23h4",
        "L-1H4",
        "L23H-4",
        "L23H4@",
        "L23H4@-1",
        "L23D38",
        "L23D38@3",
        "L23H4@3D38",
        "L24N1005@",
        "L23H4>3",
        "L23H4D38@>3",
        "L24N",
        "L24E5",
        "L24N5E5",
        "L2.5N1",
        "24_out",
        "24_ffn_out",
        "attn_24_out",
        " L23H4",
        "L23H4 ",
        "L23H4\n",
        "L23H4, L24N1005",
    ],
)
def test_nonsense_is_refused_with_the_forms_there_are(nonsense):
    """What is no label is refused by a sentence that repeats it and shows one label of every kind."""
    with pytest.raises(ValueError) as caught:
        parse_label(nonsense)
    message = str(caught.value)
    assert repr(nonsense) in message
    for example in (
        *("24_attn_out", "24_mlp_out", "L23H4", "L23H4@3", "L23H4D38@3", "L23H4D38", "L24N1005", "L3E5N10"),
    ):
        assert repr(example) in message
        assert parse_label(example)  # what the sentence advises works


@given(text=st.text(alphabet="L0123HNDE@_attnmlpouix ", max_size=12))
def test_whatever_is_taken_for_a_label_is_one(text):
    """Text is either refused, or the label (up to leading zeros) of the component that was found."""
    try:
        found = parse_label(text)
    except ValueError:
        return
    make = {
        "sublayer": lambda c: sublayer_label(c.layer, c.sublayer),
        "head": lambda c: head_label(c.layer, c.head),
        "head_position": lambda c: head_position_label(c.layer, c.head, c.position),
        "attn_neuron": lambda c: attn_neuron_label(c.layer, c.head, c.dim, c.position),
        "ffn_neuron": lambda c: ffn_neuron_label(c.layer, c.neuron, c.expert),
    }[found.unit]
    assert parse_label(make(found)) == found
    assert make(found).replace("0", "") == text.replace("0", "")


@pytest.mark.parametrize(
    ("unit", "columns", "label"),
    [
        ("sublayer", {"layer": [24], "sublayer": ["mlp"], "at": [4]}, "24_mlp_out@4"),
        ("head", {"layer": [11], "head": [2], "at": [3]}, "L11H2@>3"),
        ("head_position", {"layer": [11], "head": [2], "position": [1], "at": [3]}, "L11H2@1>3"),
        ("attn_neuron", {"layer": [11], "head": [2], "dim": [7], "position": [1], "at": [3]}, "L11H2D7@1>3"),
        ("ffn_neuron", {"layer": [11], "neuron": [1229], "at": [0]}, "L11N1229@0"),
        ("ffn_neuron", {"layer": [3], "neuron": [10], "expert": [5], "at": [2]}, "L3E5N10@2"),
    ],
)
def test_labels_say_where_a_component_is_added(unit, columns, label):
    """Of a head after what it reads; and back."""
    assert labels_of(unit, columns) == [label]
    found = parse_label(label)
    assert found.unit == unit
    assert all(getattr(found, name) == values[0] for name, values in columns.items())
