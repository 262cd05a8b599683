"""The public surface: every name is where it is said to be, nothing heavy is loaded before it is asked for."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tl_subvalues as tlsv

pytestmark = pytest.mark.any_release

ROOT = Path(tlsv.__file__).parents[1]


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running the code."""
    program = f"import sys; {code}; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_every_name_is_there_and_type_checkers_are_told_the_same() -> None:
    """`__all__`, what attribute access gives, `dir`, and the imports that editors read are one list."""
    names = set(tlsv.__all__)
    assert len(names) == len(tlsv.__all__) == 28
    assert names <= set(dir(tlsv))
    assert all(getattr(tlsv, name) is not None for name in names)
    tree = ast.parse(Path(tlsv.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.asname: node.module
        for node in ast.walk(checked)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(told) == names
    for name, module in told.items():
        own = getattr(tlsv, name)
        assert own is getattr(__import__(str(module), fromlist=[name]), name), name


def test_unknown_names_and_old_modules_are_errors() -> None:
    """A misspelt name is an AttributeError; what used to be a module beside a function of its name is no module."""
    with pytest.raises(AttributeError, match="no attribute 'tarce'"):
        tlsv.tarce  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        __import__("tl_subvalues.trace")
    assert callable(tlsv.trace)


@pytest.mark.slow
def test_nothing_heavy_is_loaded_before_it_is_asked_for() -> None:
    """The package, and the command's help, wait for neither torch nor pandas; a name loads what it needs."""
    heavy = {"torch", "transformers", "transformer_lens", "pandas", "numpy", "rich", "matplotlib"}
    assert not heavy & loaded_by("import tl_subvalues")
    helps = "import click; from tl_subvalues.command.cli import cli; " + ("cli.main(['--help'], standalone_mode=False)")
    assert not heavy & loaded_by(helps)
    assert "torch" in loaded_by("import tl_subvalues as tlsv; tlsv.Readout")
    assert not {"transformers", "transformer_lens"} & loaded_by("import tl_subvalues as tlsv; tlsv.Trace")


def test_the_version_is_in_one_place() -> None:
    """Metadata are made from it, and no other file has it written out."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^dynamic = \[.*"version"', project, flags=re.MULTILINE)
    assert 'path = "tl_subvalues/version.py"' in project
    holding = [path.name for path in (ROOT / "tl_subvalues").rglob("*.py") if tlsv.__version__ in path.read_text()]
    assert holding == ["version.py"]
