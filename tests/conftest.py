"""Settings and fixtures of all tests: no network, little noise, one prompt."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch
import transformers
import zoo

torch.set_num_threads(1)  # the models are tiny
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


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
