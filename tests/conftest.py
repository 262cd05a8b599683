"""Fixtures of all tests, what a run may leave out, and which tests a release of TransformerLens cannot run.

Nothing heavy is imported at once: the process that hands tests out to others needs none of it (4 s).
"""

import contextlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from helpers.checked import check_shapes_where_there_are

PACKAGE = Path(str(importlib.util.find_spec("tl_subvalues").origin)).parent
check_shapes_where_there_are()  # before the package is imported


def pytest_addoption(parser: pytest.Parser) -> None:
    ours = parser.getgroup("tl-subvalues")
    ours.addoption("--shapes", choices=("all", "hooked"), default="all", help="which tests check shapes and types")
    ours.addoption("--cases", type=int, metavar="N", help="of each test's cases, only the first N")
    ours.addoption("--deprecations", choices=("ignored", "errors"), default="ignored", help="of the host, by our calls")


def pytest_collection() -> None:
    """Before tests are imported, where some will run: no network, one thread."""
    importlib.import_module("helpers.surroundings")


def parameters(item: pytest.Item) -> set[str]:
    """Names among a test's parameters, alone or in a tuple."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    names = [name for value in values for name in (value if isinstance(value, tuple) else (value,))]
    return {name for name in names if isinstance(name, str)}


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what the release lacks; of all families, most are slow, and of some tests one release's are enough."""
    from helpers import zoo

    slow = {*zoo.DENSE, *zoo.MIXTURES, *zoo.HYBRIDS, *zoo.HOOKED} - zoo.QUICK
    lacking = {}
    if not zoo.has_hooked_transformer():
        lacking["hooked"] = "this TransformerLens has no HookedTransformer (it left in release 4)"
    if not zoo.has_bridge():
        lacking["bridge"] = "this TransformerLens takes no architectures from outside (before 3.9)"
    for item in items:
        for marker in lacking.keys() & item.keywords.keys():
            item.add_marker(pytest.mark.skip(reason=lacking[marker]))
        if parameters(item) & slow:
            item.add_marker(pytest.mark.slow)
            if "few_families" in item.keywords:
                item.add_marker(pytest.mark.any_release)
    if (cases := config.getoption("--cases")) is not None:
        first_cases(config, items, cases)


def first_cases(config: pytest.Config, items: list[pytest.Item], number: int) -> None:
    """Leave so many cases of each test, of those that are not slow and not skipped."""
    counts: Counter[str] = Counter()
    kept, rest = [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        runs = not {"slow", "skip"} & set(item.keywords)
        counts[test] += runs
        (kept if runs and counts[test] <= number else rest).append(item)
    config.hook.pytest_deselected(items=rest)
    items[:] = kept


LISTENING = pytest.StashKey[contextlib.ExitStack]()
HEARD = pytest.StashKey[list[str]]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Before fixtures, so that they are listened to and checked like their tests."""
    few = item.config.getoption("--shapes") == "hooked" and "hooked" not in item.keywords
    unchecked = few or "real_model" in item.keywords  # whose shapes the tiny models have
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    item.stash[LISTENING] = contextlib.ExitStack()
    if item.config.getoption("--deprecations") == "errors":
        from helpers.deprecations import heard_below

        item.stash[HEARD] = item.stash[LISTENING].enter_context(heard_below(PACKAGE))
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:
        item.stash[LISTENING].close()
        if heard := item.stash.get(HEARD, []):
            pytest.fail("deprecated by the host:\n" + "\n".join(sorted(set(heard))), pytrace=False)


@pytest.fixture
def read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sets how many vectors and words a softmax reads at a time: of the tiny models it would read all."""
    from tl_subvalues.numerics import softmax

    def of(vectors: int, words: int) -> None:
        assert vectors <= softmax.VECTOR_BLOCK
        assert words <= softmax.VOCAB_BLOCK
        monkeypatch.setattr(softmax, "VECTOR_BLOCK", vectors)
        monkeypatch.setattr(softmax, "VOCAB_BLOCK", words)

    return of


@pytest.fixture(scope="session")
def tokens() -> Any:
    """One prompt of seven random words, [1, pos]; the special words 0, 1, 2 are not among them."""
    import torch

    return torch.randint(3, 61, (1, 7), generator=torch.Generator().manual_seed(20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder, for --model."""
    from helpers.command import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The model that --model loads."""
    import tl_subvalues

    return tl_subvalues.load_model(str(folder))
