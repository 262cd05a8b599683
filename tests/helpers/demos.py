"""The scripts of demos/ as modules, to be tested without being run."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DEMOS = Path(__file__).parents[2] / "demos"


def demo(path: str) -> ModuleType:
    """A script by its path in demos/, imported; scripts beside it are found."""
    file = DEMOS / path
    spec = importlib.util.spec_from_file_location(f"demos_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module
