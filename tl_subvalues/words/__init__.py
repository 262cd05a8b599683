"""Vectors read in words: the tokens that a component writes and suppresses.

May import numerics, the model view, the readout and the decomposition.
"""
