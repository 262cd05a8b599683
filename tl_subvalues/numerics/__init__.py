"""Plain mathematics over tensors: blocks of one size, norms with their scale frozen, one softmax read in blocks.

Knows no model, no run and no vocabulary; imports nothing of the package.
"""
