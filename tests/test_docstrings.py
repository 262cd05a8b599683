"""Examples in docstrings of what is public run, and give what they say."""

import doctest
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release


def documented() -> Iterator[Any]:
    """Public names and what is public of classes among them."""
    for name in tlsv.__all__:
        one = getattr(tlsv, name)
        yield one
        if inspect.isclass(one):
            yield from (member for key, member in vars(one).items() if not key.startswith("_"))


@pytest.mark.slow
@pytest.mark.real_model
def test_examples_run() -> None:
    """As a doctest, in the order that they come, with nothing given."""
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    examples = [test for one in documented() for test in finder.find(one, name=repr(one), globs={"tlsv": tlsv})]
    for test in examples:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert sum(len(test.examples) for test in examples) >= 10
