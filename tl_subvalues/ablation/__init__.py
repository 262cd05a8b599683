"""Components ablated in a forward pass: labels in, plain TransformerLens hooks out, and what they do to a target.

May import numerics, the model view and the readout, whose targets it reads.
"""
