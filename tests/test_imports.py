"""Imports run one way, and one room alone knows TransformerLens."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tl_subvalues

ROOT = Path(tl_subvalues.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
# Where TransformerLens is known: the model view, and the two files that make Baevski & Auli's model one of its own.
TRANSFORMER_LENS = ("model_view/", "baevski18/bridge.py", "baevski18/hooked.py")
OUTSIDE = {name: tree for name, tree in SOURCES.items() if not name.startswith(TRANSFORMER_LENS)}

# model view -> decomposition -> readout -> importance -> search -> trace -> command line. A module imports only from
# lines above its own (within a line: from nothing); a new module takes its place here.
ORDER = [
    ["errors", "labels", "norms", "blocks"],
    ["softmax"],
    ["model_view", "baevski18"],
    ["models", "readout", "subvalues", "facts", "output", "record"],
    ["reference", "importance", "sites", "bounds"],
    ["expert_hooks", "search", "subkeys", "components"],
    ["hooks"],
    ["intervene", "activation", "curve"],
    ["query"],
    ["tables", "plots"],
    ["pictures"],
    ["trace"],
    ["tracing"],
    ["batch", "rankings"],
    ["answer", "evaluate", "collect"],
    ["report"],
    ["__init__"],
    ["loading"],
    ["fact_commands"],
    ["cli"],
    ["__main__"],
]
RANK = {module: rank for rank, line in enumerate(ORDER) for module in line}
ROOM = ["folders", "host", "faults", "experts", "weights", "view", "activations", "completeness"]
# The same within baevski18.
BAEVSKI18 = [
    "configuration",
    "options",
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


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_has_its_place(name):
    """A module that the order does not know cannot be checked against it."""
    place = name.removesuffix(".py").split("/")
    assert place[0] in RANK
    if place[0] == "model_view":
        assert place[1] in {*ROOM, "tokens", "__init__"}
    if place[0] == "baevski18":
        assert place[1] in BAEVSKI18


@pytest.mark.parametrize("name", [name for name in SOURCES if not name.startswith(("model_view/", "baevski18/"))])
def test_imports_run_one_way(name):
    """A module imports only what stands before it, from the errors up to the command line."""
    mine = RANK[name.removesuffix(".py")]
    for other in own_modules(SOURCES[name]):
        assert RANK[other.split("/")[0]] < mine, f"{name} imports {other}"


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("baevski18/")])
def test_baevski18_imports_one_way(name):
    """Its modules import those before them and what stands before the whole, which the model view does not."""
    own = BAEVSKI18.index(name.removeprefix("baevski18/").removesuffix(".py"))
    for other in own_modules(SOURCES[name]):
        top, _, inner = other.partition("/")
        if top == "baevski18":
            assert BAEVSKI18.index(inner or "loading") < own, f"{name} imports {other}"
        else:
            assert RANK[top] < RANK["baevski18"], f"{name} imports {other}"


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("model_view/")])
def test_the_model_view_imports_nothing_that_comes_after_it(name):
    """The room that knows TransformerLens knows nothing of what is built on it, and is itself layered."""
    own = name.removeprefix("model_view/").removesuffix(".py")
    for other in own_modules(SOURCES[name]):
        top, _, inner = other.partition("/")
        if not inner:
            assert RANK[top] <= RANK["model_view"], f"{name} imports {other}"
        elif own in ROOM:
            assert inner in ROOM[: ROOM.index(own)], f"{name} imports {other}"


@pytest.mark.parametrize("name", OUTSIDE)
def test_only_the_model_view_knows_transformer_lens(name):
    """Outside it nobody imports TransformerLens or names its classes in code (docstrings may)."""
    assert not [module for module in imported(OUTSIDE[name]) if module.split(".")[0] == "transformer_lens"]
    assert not names_in_code(OUTSIDE[name]) & FOREIGN_NAMES


@pytest.mark.parametrize("name", OUTSIDE)
def test_only_the_model_view_knows_a_releases_attributes(name):
    """Attributes that depend on class or release are read in one room, by getattr or plainly."""
    assert not names_in_code(OUTSIDE[name]) & FOREIGN_ATTRIBUTES


def test_the_package_imports_without_transformers() -> None:
    """`import tl_subvalues` loads neither TransformerLens nor transformers, so that the command's help is quick."""
    code = "import sys, tl_subvalues; print({'transformers', 'transformer_lens', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Tables of facts in, tables over facts out.
OVER_FACTS = ("facts.py", "output.py", "evaluate.py", "collect.py")


@pytest.mark.parametrize("name", SOURCES)
def test_the_core_is_torch_only(name):
    """pandas and numpy are for tables: the model view, the readout and the scores work on tensors alone."""
    found = {module.split(".")[0] for module in imported(SOURCES[name])}
    allowed = name in (
        "tables.py",
        "plots.py",
        "pictures.py",
        "trace.py",
        "batch.py",
        "report.py",
        "cli.py",
        "__main__.py",
        *OVER_FACTS,
    )
    assert allowed or not found & {"pandas", "numpy", "typer", "rich", "matplotlib"}


def test_the_checks_see_what_they_are_for():
    """The helpers find imports inside functions, attribute names in strings, and leave docstrings alone."""
    tree = ast.parse(
        '"""TransformerBridge"""\ndef f(m):\n    "ln_final"\n    import transformer_lens.hook_points\n'
        '    from tl_subvalues.trace import trace\n    return getattr(m, "hook_aliases")\n'
    )
    assert list(imported(tree)) == ["transformer_lens.hook_points", "tl_subvalues.trace.trace"]
    assert own_modules(tree) == {"trace"}
    assert "hook_aliases" in names_in_code(tree)
    assert not names_in_code(tree) & {"TransformerBridge", "ln_final"}
    view = names_in_code(SOURCES["model_view/host.py"])
    assert {"original_component", "hook_aliases", "TransformerBridge"} <= view
