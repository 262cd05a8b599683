"""Components ablated in a forward pass: labels in, plain TransformerLens hooks out, and what they do to a target.

May import numerics and the model view.
"""
