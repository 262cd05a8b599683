"""Rankings of several runs of one model at once: bounds and evaluations in few large products.

A search for one run evaluates a block of vectors at a time; here, blocks are filled with vectors of all runs, and a
sublayer's weights are multiplied with the gradients of all.
"""

from collections.abc import Iterator, Sequence

from jaxtyping import Int
from torch import Tensor

from tl_subvalues.importance.candidates import Candidates, Ranked, evaluate_together
from tl_subvalues.importance.search import BLOCK, Search, is_searched, promises, rank

# Vectors made at a time over all runs: 5,116 vectors of 4,096 numbers are 84 MB.
_VECTORS = 4 * BLOCK
# A step of a search that other searches fill a block with.
_STEP = 32


def rank_together(many: Sequence[Candidates], top: int | None, largest: bool = True) -> list[Ranked]:
    """`rank` of each, the same parts in the same order with the same increases."""
    found: dict[int, Ranked] = {}
    searched = [i for i, one in enumerate(many) if is_searched(one, top)]
    if top is not None and searched:
        bounds = promises([many[i] for i in searched], largest)
        # One in thirty more than are wanted certifies most searches at the first step (SmolLM2-135M: 304 for 300).
        first = top + top // 32 + 4
        searches = {
            i: Search(many[i], own, top, largest, first, _STEP) for i, own in zip(searched, bounds, strict=True)
        }
        while open_ones := {i: one for i, one in searches.items() if len(one.next)}:
            for numbers in _filled({i: one.next for i, one in open_ones.items()}):
                increases = evaluate_together([(many[i], number) for i, number in numbers.items()])
                for i, increase in zip(numbers, increases, strict=True):
                    open_ones[i].add(increase)
        found = {i: one.ranked() for i, one in searches.items()}
    return [found[i] if i in found else rank(one, top=top, largest=largest) for i, one in enumerate(many)]


def _filled(wanted: dict[int, Int[Tensor, " _"]]) -> Iterator[dict[int, Int[Tensor, " _"]]]:
    """What is to be evaluated, so many vectors at a time, each search's by itself."""
    batch: dict[int, Tensor] = {}
    size = 0
    for i, numbers in wanted.items():
        if batch and size + len(numbers) > _VECTORS:
            yield batch
            batch, size = {}, 0
        batch[i] = numbers
        size += len(numbers)
    if batch:
        yield batch
