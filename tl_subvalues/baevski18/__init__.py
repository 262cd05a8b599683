"""Baevski & Auli's language model with adaptive input and softmax (arXiv 1809.10853), as fairseq published it.

`load` takes fairseq's files, `convert` writes them without pickles, `config` gives the full-size configuration.
transformers is imported when a model is loaded, not before.
"""

from pathlib import Path
from typing import Any

import torch

from tl_subvalues.baevski18.configuration import Baevski18Config, config

__all__ = ["Baevski18Config", "config", "convert", "load"]


def load(
    checkpoint: str | Path,
    dictionary: str | Path | None = None,
    *,
    device: Any = None,
    dtype: torch.dtype = torch.float32,
    hooked: bool = False,
) -> Any:
    """See `tl_subvalues.baevski18.loading.load`."""
    from tl_subvalues.baevski18 import loading

    return loading.load(checkpoint, dictionary, device=device, dtype=dtype, hooked=hooked)


def convert(checkpoint: str | Path, dictionary: str | Path, out: str | Path) -> None:
    """See `tl_subvalues.baevski18.loading.convert`."""
    from tl_subvalues.baevski18 import loading

    loading.convert(checkpoint, dictionary, out)
