"""Imports run one way, and one room alone knows TransformerLens."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tl_subvalues

pytestmark = pytest.mark.any_release

ROOT = Path(tl_subvalues.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
# Where TransformerLens is known: the model view, and the two files that make Baevski & Auli's model one of its own.
TRANSFORMER_LENS = ("model_view/", "baevski18/bridge.py", "baevski18/hooked.py")
OUTSIDE = {name: tree for name, tree in SOURCES.items() if not name.startswith(TRANSFORMER_LENS)}

# Which rooms each room may import, from the ground up; what is on the ground is open to all. Imports inside a room are
# its own affair (but for the two rooms whose modules are ordered below). A new room takes its place here.
ROOMS: dict[str, set[str]] = {
    "numerics": set(),
    "baevski18": {"numerics"},
    "model_view": {"numerics"},
    "loading": {"baevski18", "model_view"},
    "readout": {"numerics", "model_view"},
    "decomposition": {"numerics", "model_view"},
    "importance": {"numerics", "readout", "decomposition"},
    "words": {"numerics", "model_view", "readout", "decomposition"},
    "upstream": {"numerics", "model_view", "readout", "decomposition"},
    "ablation": {"numerics", "model_view", "readout"},
    "show": {"readout", "importance", "upstream", "words"},
    "rows": {"numerics", "model_view", "readout", "importance", "words", "show"},
    "saved": {"show"},
    "live": {"show", "saved"},
    "tracing": {
        "numerics",
        "model_view",
        "readout",
        "decomposition",
        "importance",
        "words",
        "upstream",
        "ablation",
        "show",
        "saved",
        "live",
    },
    "study": {
        "numerics",
        "loading",
        "model_view",
        "readout",
        "decomposition",
        "importance",
        "upstream",
        "ablation",
        "tracing",
    },
    "command": {
        "loading",
        "model_view",
        "baevski18",
        "decomposition",
        "words",
        "upstream",
        "show",
        "rows",
        "saved",
        "live",
        "tracing",
        "study",
    },
}
GROUND = {"errors", "files", "labels", "paths", "progress", "version"}
MODEL_VIEW = [
    "releases",
    "folders",
    "loading",
    "modules",
    "identity",
    "faults",
    "weights",
    "experts",
    "remembered",
    "layers",
    "running",
    "indexing",
    "long_prompts",
    "view",
    "activations",
    "equalities",
    "checks",
]
BAEVSKI18 = [
    "configuration",
    "options",
    "pickles",
    "storages",
    "checkpoint",
    "dictionary",
    "adaptive",
    "modeling",
    "bridge",
    "hooked",
    "loading",
    "__init__",
]

# What only TransformerLens's releases have names for.
FOREIGN_NAMES = {"TransformerBridge", "HookedTransformer", "HookedTransformerConfig", "ActivationCache"}
FOREIGN_ATTRIBUTES = {
    "original_component",
    "original_model",
    "hook_aliases",
    "hook_dict",
    "residual_contribution_scale",
    "uses_rms_norm",
    "uses_weight_offset",
    "rmsnorm_uses_offset",
    "use_native_layernorm_autograd",
    "layer_norm_folding",
    "use_normalization_before_and_after",
    "original_architecture",
    "output_logits_soft_cap",
    "logit_scale",
    "logits_scaling",
    "parallel_attn_mlp",
    "ln_final",
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports anywhere, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(tree: ast.AST) -> set[str]:
    """Modules of this package that are imported: 'norms', 'model_view/host'; the package itself is '__init__'."""
    found = set()
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] != "tl_subvalues":
            continue
        inside = parts[1:]
        if not inside or not ((ROOT / inside[0]).is_dir() or (ROOT / f"{inside[0]}.py").is_file()):
            found.add("__init__")
        elif len(inside) > 1 and (ROOT / inside[0] / f"{inside[1]}.py").is_file():
            found.add(f"{inside[0]}/{inside[1]}")
        else:
            found.add(inside[0])
    return found


def without_docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return (node for node in ast.walk(tree) if id(node) not in skipped)


def names_in_code(tree: ast.Module) -> set[str]:
    """Names, attributes, imported names, and strings that getattr and its like could use."""
    found = set()
    for node in without_docstrings(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= set(node.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def room_of(module: str) -> str:
    """The room that a module is in; of the ground and the package's own face, its name."""
    return module.removesuffix(".py").partition("/")[0]


def test_every_module_has_its_room():
    """A module that no rule knows cannot be checked against one."""
    assert [name for name in SOURCES if room_of(name) not in {*ROOMS, *GROUND, "__init__", "__main__"}] == []


def test_rooms_are_floors():
    """No room may import one that may import it, by whatever way: each names only rooms that stand before it."""
    order = list(ROOMS)
    assert all(order.index(other) < order.index(room) for room, others in ROOMS.items() for other in others)


def test_imports_run_one_way():
    """A module imports its own room, the ground, and the rooms that its own may."""
    for name in SOURCES.keys() - {"__init__.py"}:
        mine = room_of(name)
        allowed = GROUND | ({mine} | ROOMS[mine] if mine in ROOMS else set())
        allowed |= {"command"} if mine == "__main__" else set()
        for other in own_modules(SOURCES[name]):
            assert room_of(other) in allowed, f"{name} imports {other}"


@pytest.mark.parametrize(("room", "order"), [("model_view", MODEL_VIEW), ("baevski18", BAEVSKI18)])
def test_two_rooms_are_ordered_inside(room, order):
    """The model view, and Baevski & Auli's model, are read from one end to the other."""
    for name in order:
        for other in own_modules(SOURCES[f"{room}/{name}.py"]):
            if other.startswith(f"{room}/"):
                assert other.removeprefix(f"{room}/") in order[: order.index(name)], f"{name} imports {other}"


def test_only_the_model_view_knows_transformer_lens():
    """Outside it nobody imports TransformerLens or names its classes in code (docstrings may)."""
    for name, tree in OUTSIDE.items():
        assert not [module for module in imported(tree) if module.split(".")[0] == "transformer_lens"], name
        assert not names_in_code(tree) & FOREIGN_NAMES, name


def test_only_the_model_view_knows_a_releases_attributes():
    """Attributes that depend on class or release are read in one room, by getattr or plainly."""
    for name, tree in OUTSIDE.items():
        assert not names_in_code(tree) & FOREIGN_ATTRIBUTES, name


# Rooms whose results are tables.
TABLES = {"show", "rows", "saved", "tracing", "study", "command"}


def test_the_core_is_torch_only():
    """pandas and numpy are for tables: the model view, the readout and the scores work on tensors alone."""
    for name, tree in SOURCES.items():
        found = {module.split(".")[0] for module in imported(tree)}
        assert room_of(name) in TABLES or not found & {"pandas", "numpy", "click", "rich", "matplotlib"}, name


def test_servers_and_widgets_are_known_in_one_room():
    """Who has not the extra does without; and what answers knows neither of them, nor torch."""
    allowed = {
        "starlette": {"live/guard.py", "live/server.py"},
        "uvicorn": {"live/server.py"},
        "anywidget": {"live/widget.py"},
        "torch": {name for name in SOURCES if not name.startswith("live/")},
    }
    for name, tree in SOURCES.items():
        for module in {module.split(".")[0] for module in imported(tree)} & allowed.keys():
            assert name in allowed[module], f"{name} imports {module}"


@pytest.mark.slow
def test_no_test_imports_another():
    """What two tests need is in tests/helpers."""
    tests = Path(__file__).parent
    files = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in tests.rglob("*.py")}
    assert len(files) > 40
    for name, tree in files.items():
        assert not [module for module in imported(tree) if module.startswith("test_")], name


def test_the_checks_see_what_they_are_for():
    """The helpers find imports inside functions, attribute names in strings, and leave docstrings alone."""
    tree = ast.parse(
        '"""TransformerBridge"""\ndef f(m):\n    "ln_final"\n    import transformer_lens.hook_points\n'
        '    from tl_subvalues.tracing.trace import trace\n    return getattr(m, "hook_aliases")\n'
    )
    assert list(imported(tree)) == ["transformer_lens.hook_points", "tl_subvalues.tracing.trace.trace"]
    assert own_modules(tree) == {"tracing/trace"}
    assert "hook_aliases" in names_in_code(tree)
    assert not names_in_code(tree) & {"TransformerBridge", "ln_final"}
    assert "TransformerBridge" in names_in_code(SOURCES["model_view/releases.py"])
    assert {"original_component", "hook_aliases"} <= names_in_code(SOURCES["model_view/modules.py"])
