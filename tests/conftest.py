"""Fixtures of all tests, and which tests a release of TransformerLens cannot run."""

import pytest
import torch
from helpers import surroundings, zoo  # noqa: F401 (no network, one thread)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without_hooked = pytest.mark.skip(reason="this TransformerLens has no HookedTransformer (it left in release 4)")
    without_bridge = pytest.mark.skip(reason="this TransformerLens takes no architectures from outside (before 3.9)")
    for item in items:
        if "hooked" in item.keywords and not zoo.has_hooked_transformer():
            item.add_marker(without_hooked)
        if "baevski18" in item.nodeid and not zoo.has_bridge():
            item.add_marker(without_bridge)


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    """One prompt of seven random words, [1, pos]; the special words 0, 1, 2 are not among them."""
    return torch.randint(3, 61, (1, 7), generator=torch.Generator().manual_seed(20))
