"""What the tests' own ear for deprecations hears: `make test` fails where our calls into the host are deprecated."""

import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from helpers.deprecations import heard_below

pytestmark = pytest.mark.any_release

HOST = """
import warnings
def old(kind):
    warnings.warn("old is gone soon", kind, stacklevel=1)
"""
OURS = """
import host
def call(kind):
    return host.old(kind)  # line 4
"""


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of one module that calls another package."""
    for folder, name, source in (("site", "host", HOST), ("package", "ours", OURS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path / folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__("ours")


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_a_deprecation_below_our_code_is_heard(kind: type[Warning], ours: ModuleType, tmp_path: Path) -> None:
    """With the line of ours, however often; of other callers, and other warnings, nothing."""
    with heard_below(tmp_path / "package") as heard:
        ours.call(kind)
        ours.call(kind)
        ours.host.old(kind)
        ours.call(UserWarning)
    assert heard == [f"{tmp_path / 'package' / 'ours.py'}:4 {kind.__name__}: old is gone soon"] * 2
    with warnings.catch_warnings(record=True) as caught:  # and afterwards warnings are shown as before
        warnings.simplefilter("always")
        ours.call(kind)
    assert len(caught) == 1
    assert len(heard) == 2


def test_what_transformers_logs_is_heard(ours: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It logs most of its deprecations, and each once a process; a handler and a level of others are left alone."""
    logger = transformers.utils.logging.get_logger("transformers.models.some")
    root = logging.getLogger("transformers")
    before = list(root.handlers), root.level
    monkeypatch.setattr(ours.host, "old", lambda message: logger.warning_once(message))
    for _ in range(2):
        with heard_below(tmp_path / "package") as heard:
            ours.call("`dtype` is deprecated")
            ours.call("something else")
        assert heard == [f"{tmp_path / 'package' / 'ours.py'}:4 `dtype` is deprecated"]
    assert (root.handlers, root.level) == before
