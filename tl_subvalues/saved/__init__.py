"""Finished traces without their models: one document of what was found, written, opened and shown.

Knows neither torch nor TransformerLens, so that a file opens anywhere. May import show, and of it what needs no torch.
"""
