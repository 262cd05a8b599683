"""The one error of our own: a model or a block that the method does not cover."""


class UnsupportedModelError(ValueError):
    """A model, or a block of it, that cannot be decomposed exactly: which, why, and the way out."""


class UnknownWordsWarning(UserWarning):
    """Words of a text that a model's vocabulary lacks, by name."""
