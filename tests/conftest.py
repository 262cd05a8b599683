"""Fixtures of all tests, and which tests a release of TransformerLens cannot run."""

import pytest
import torch
from helpers import surroundings, zoo  # noqa: F401 (no network, one thread)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = {}
    if not zoo.has_hooked_transformer():
        lacking["hooked"] = "this TransformerLens has no HookedTransformer (it left in release 4)"
    if not zoo.has_bridge():
        lacking["bridge"] = "this TransformerLens takes no architectures from outside (before 3.9)"
    for item in items:
        for marker in lacking.keys() & item.keywords.keys():
            item.add_marker(pytest.mark.skip(reason=lacking[marker]))


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """One prompt of seven random words, [1, pos]; the special words 0, 1, 2 are not among them."""
    return torch.randint(3, 61, (1, 7), generator=torch.Generator().manual_seed(20))
