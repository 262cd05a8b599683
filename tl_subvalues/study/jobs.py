"""What is worked out for every fact, as an object that can be sent to a worker; `collect` and `evaluate` are two."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from tl_subvalues.model_view import ModelView
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.study.facts import Fact

# Facts that are worked through together where the user does not say how many, and what their distributions at all
# sublayers may take: 24 facts take 283 MB with 60 sublayers and 49,152 words. More do not run faster on two CPU cores.
BATCH = 24
_BYTES = 1 << 29
Item = dict[str, Any]


@runtime_checkable
class Job(Protocol):
    """What is worked out for a fact: an item, in terms of JSON, and its rows in a file."""

    @property
    def what(self) -> str:
        """Its name, "collect" or "evaluate"."""

    @property
    def by(self) -> tuple[str, ...]:
        """Columns of the facts that it needs, beside prompt, target and against."""

    def settings(self) -> dict[str, Any]:
        """What its items depend on, beside model and facts."""

    def on(self, view: ModelView) -> Callable[[Sequence[Fact]], list[Item]]:
        """What makes the items of a batch of facts with a model."""

    def rows(self, facts: Sequence[Fact], items: Sequence[Item]) -> pa.Table:
        """The items as rows of a part, with the facts' numbers in the column `fact`."""


def chosen_batch_size(batch_size: Any, view: ModelView) -> int:
    """How many facts are worked through together; by default as many as 512 MB hold the distributions of, 24 at most.

    Raises:
        ValueError: unless it is None or a positive number.
    """
    if batch_size is not None:
        return whole_number(batch_size, "batch_size")
    sites = sum(len(layer.sublayers) for layer in view.layers)
    each = sites * view.readout.d_vocab * view.compute_dtype.itemsize
    return max(1, min(BATCH, _BYTES // max(1, each)))
