"""Errors and warnings of this package; everything else it raises is a ValueError, a KeyError or an OSError."""


class UnsupportedModelError(ValueError):
    """A model, or a block of it, that cannot be decomposed exactly: which, why, and the way out."""


class UnknownWordsWarning(UserWarning):
    """Words of a text that a model's vocabulary lacks, by name."""
