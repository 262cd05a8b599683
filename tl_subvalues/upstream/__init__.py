"""The query side, covectors times what was added before: what switched a part on, what fed it, what it did in the end.

May import numerics, the model view, the readout and the decomposition.
"""
