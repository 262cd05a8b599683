"""What tables are compared by: one target, one position, every unit; and how close brute force must be."""

import torch

TARGET = 17
MIDDLE = 3
UNITS = {
    "sublayer": lambda t: t.layers(),
    "head": lambda t: t.heads(top=None),
    "head_position": lambda t: t.head_positions(top=None),
    "attn_neuron": lambda t: t.attn_neurons(top=None),
    "ffn_neuron": lambda t: t.ffn_neurons(top=None),
}
# Relative to the largest entry of the whole; 6e-7 is the most that was seen.
SUM_TOLERANCE = 1e-5
# In nats, and for probabilities; 2e-5 is the most that was seen, on increases of 117 nats (1e-5 elsewhere).
INCREASE_TOLERANCE = 1e-4


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected entry."""
    return float((found.double() - expected).abs().max() / expected.abs().max())
