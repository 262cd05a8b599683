"""How much each subvalue raises the target: increases, bounds on them, the exact top k, curves.

May import numerics, the readout and the decomposition.
"""
