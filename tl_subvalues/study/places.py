"""Where the results of a run over many facts go: one file, or a folder of parts, written here or by workers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_subvalues.errors import shown
from tl_subvalues.paths import named_path
from tl_subvalues.study.parts import Shard, require_shard


@dataclass(frozen=True)
class Place:
    """A folder for the parts of one shard, and who writes them."""

    folder: Path
    shard: Shard
    ray: bool | str = False

    def workers(self, model: Any) -> Callable[..., None] | None:
        """Who works with a model; None is this process."""
        if self.ray is False:
            return None
        from tl_subvalues.study.ray_workers import RayWorkers

        return RayWorkers(model, None if self.ray is True else self.ray)


def is_folder(out: Any) -> bool:
    """Whether an output is a folder of parts rather than a file: one that is there, or a name without a suffix."""
    return out is not None and (named_path(out).is_dir() or not named_path(out).suffix)


def place_of(out: Any, *, record: Any, shard: Any, ray: Any) -> Place | None:
    """The folder that parts go to; None where the table goes to a file, or nowhere.

    Raises:
        ValueError: if a shard, or workers, have no folder, or its parent does not exist.
    """
    chosen = require_shard(shard)
    if not isinstance(ray, (bool, str)):
        raise ValueError(f"ray is True or the address of a Ray, got {ray!r}.")
    if not is_folder(out):
        for name, given in (("shard", shard is not None), ("ray", ray is not False)):
            if given:
                raise ValueError(f"{name}= writes parts; pass a folder for them, out='parts'.")
        return None
    path = named_path(out)
    if path.suffix in (".parquet", ".csv") or path.is_file() or not path.absolute().parent.is_dir():
        raise ValueError(f"{shown(path)}: not a folder, or the folder to make it in does not exist.")
    if record is not None:
        raise ValueError("a folder of parts is its own record; leave record= out.")
    if ray is not False:
        from tl_subvalues.study.ray_workers import require_ray

        require_ray()
    return Place(path.resolve(), chosen, ray)
