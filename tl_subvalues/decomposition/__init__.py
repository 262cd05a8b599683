"""Attention and FFN outputs taken apart into subvalues that add up to them, and the vectors behind labels.

May import numerics and the model view; what it gives are tensors and the places of a run.
"""
