"""The model's own rows, without a prompt: which write a word, which are alike, and an index of the words of all.

May import numerics, the model view, the readout, the importance (for `top`), the words and the tables.
"""
