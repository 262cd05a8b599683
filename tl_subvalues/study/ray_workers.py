"""Parts made by workers of Ray Data: an actor has a model, gets the rows of one part after the other, and writes it.

An actor that dies is started again by Ray, and its rows are given out again; a part that was written twice is the same
file. What goes wrong in a worker comes back as a message, so that the driver stops with one sentence.
"""

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tl_subvalues.errors import UnsupportedModelError, shown, told
from tl_subvalues.loading.models import load_model
from tl_subvalues.loading.origin import Origin, origin_of
from tl_subvalues.model_view import view_of
from tl_subvalues.study.sharded import Work
from tl_subvalues.study.sources import Row


@dataclass(frozen=True)
class RayWorkers:
    """Ray's workers for one model."""

    model: Any
    address: str | None  # None: a Ray that runs, else one on this machine

    def __call__(self, work: Work, missing: list[range], rows: Sequence[Row], tell: Callable[[int], Any]) -> None:
        """Have the missing parts of a shard made.

        Args:
            work: what to do.
            missing: the parts, as places among the rows.
            rows: of the shard.
            tell: is told how many rows are done, as parts come.

        Raises:
            ValueError: for what a worker refuses, and if Ray fails.
        """
        ray = require_ray()
        with _connected(ray, self.address):
            origin = origin_of(self.model)
            shipped = origin if origin is not None else ray.put(ray.cloudpickle.dumps(self.model))
            for found in _results(ray, work, shipped, _tasks(missing, rows), _gpus(ray, self.model, origin)):
                if found["problem"]:
                    kind = UnsupportedModelError if found["unsupported"] else ValueError
                    raise kind(found["problem"])
                tell(int(found["done"]))


def require_ray() -> Any:
    """The library.

    Raises:
        ImportError: saying how to install it.
    """
    try:
        import ray
        import ray.cloudpickle
        import ray.data
    except ImportError as error:
        raise ImportError("ray= needs Ray Data: pip install 'tl-subvalues[ray]'") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A Ray to work with; one that was connected to here is let go at the end, a local one that was started ended."""
    if ray.is_initialized():
        yield
        return
    how = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address is not None:
            ray.init(address=address, **how)
        else:
            try:
                ray.init(address="auto", **how)
            except ConnectionError:
                ray.init(address="local", include_dashboard=False, **how)
    except Exception as error:  # of several libraries: no such address, versions that differ, a start that takes long
        where = "on this machine" if address is None else f"at {shown(address)}"
        raise ValueError(f"there is no Ray {where} to work with ({told(error)}).") from error
    try:
        yield
    finally:
        ray.shutdown()


def _tasks(missing: Sequence[range], rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "start": places.start,
            "stop": places.stop,
            "rows": pickle.dumps([(r.where, r.columns, r.problem, r.number) for r in rows[places.start : places.stop]]),
        }
        for places in missing
    ]


def _gpus(ray: Any, model: Any, origin: Origin | None) -> int:
    """GPUs of the cluster that workers are to have, one each: none where the model is to be on a CPU."""
    anywhere = origin is not None and origin.device is None and origin.device_map is None
    on_gpu = next(model.parameters()).device.type == "cuda"
    return int(ray.cluster_resources().get("GPU", 0)) if on_gpu or anywhere else 0


def _results(ray: Any, work: Work, shipped: Any, tasks: list[dict[str, Any]], gpus: int) -> Iterator[dict[str, Any]]:
    """What workers say of each part, as it is done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    workers = min(len(tasks), gpus or max(1, int(ray.cluster_resources().get("CPU", 1))))
    made = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _Worker,
        fn_constructor_args=(work, shipped),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=1 if gpus else 0,  # Ray Data starts an actor again that was killed, as often as it takes
    )
    try:
        yield from made.iter_rows()
    except (ray.exceptions.RayError, RuntimeError, TypeError) as error:  # TypeError: what cannot be sent to workers
        raise ValueError(f"Ray stopped ({told(error)}); the same call makes the parts that are missing.") from error


class _Worker:
    """An actor: a model on one thread, and what makes parts with it."""

    def __init__(self, work: Work, shipped: Any) -> None:
        torch.set_num_threads(1)  # several workers with more threads wait for each other
        self._problem, self._unsupported = "", False
        try:
            self._write = work.opened(self._view(work, shipped))
        except Exception as error:
            self._keep(error)

    def _view(self, work: Work, shipped: Any) -> Any:
        if not isinstance(shipped, Origin):
            ray = require_ray()
            return view_of(ray.cloudpickle.loads(ray.get(shipped)))
        model = load_model(
            shipped.name,
            device=shipped.device,
            dtype=shipped.dtype,
            device_map=shipped.device_map,
            show_progress=False,
        )
        view = view_of(model)
        own, expected = view.provenance(), work.folder.settings
        # "model" is what the user called it, here a path in full
        differing = [name for name, value in own.items() if name != "model" and expected.get(name) != value]
        if differing:
            raise ValueError(
                f"a worker that loaded {shown(shipped.name)} has another {', '.join(differing)}; load the model anew "
                "and leave it as it is, and see that all machines have the same versions."
            )
        return view

    def _keep(self, error: Exception) -> None:
        ours = isinstance(error, ValueError)
        self._problem = str(error) if ours else f"a worker failed: {told(error)}"
        self._unsupported = isinstance(error, UnsupportedModelError)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make one part."""
        done = 0
        if not self._problem:
            places = range(int(batch["start"][0]), int(batch["stop"][0]))
            try:
                done = self._write(places, [Row(*one) for one in pickle.loads(batch["rows"][0])])
            except Exception as error:
                self._keep(error)
        return {"done": [done], "problem": [self._problem], "unsupported": [self._unsupported]}
