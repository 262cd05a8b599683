"""TransformerLens's releases: names that only some of them know stand in one place, and an unknown release is met."""

import ast
import functools
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import zoo

import tl_subvalues as tlsv
from tl_subvalues.model_view import releases

PACKAGE = Path(tlsv.__file__).parent
# The room for what differs between releases: classes and attributes, known faults, how release 2 loads a folder.
ROOM = (
    "model_view/releases.py",
    "model_view/loading.py",
    "model_view/modules.py",
    "model_view/faults.py",
    "model_view/folders.py",
)
MAJOR = importlib.metadata.version("transformer_lens").split(".")[0]

# name -> the releases (first number of the version) whose sources have it; all other names are in all three.
VERSIONED = {
    "TransformerBridge": "34",
    "_weights_processed": "34",
    "boot_transformers": "34",
    "get_pretrained_model_config": "23",
    "get_pretrained_state_dict": "23",
    "hook_aliases": "34",
    "layer_norm_folding": "34",
    "model_bridge": "34",
    "move_model_modules_to_device": "23",
    "original_component": "34",
    "original_model": "34",
    "residual_contribution_scale": "34",
    "rmsnorm_uses_offset": "34",
    "use_native_layernorm_autograd": "34",
    "uses_rms_norm": "34",
    "uses_weight_offset": "4",
}
# Read from the configurations and modules of Hugging Face, whose names are not TransformerLens's.
HUGGING_FACE = {
    "sinks",
    "logit_scale",
    "logits_scaling",
    "config",
    "multi_query",
    "new_decoder_architecture",
    "to_dict",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "variance_epsilon",
}
# Asked of an unembedding by this package itself.
OWN = {"softmaxes"}


@functools.cache
def words() -> frozenset[str]:
    """All words in the sources of the installed TransformerLens."""
    spec = importlib.util.find_spec("transformer_lens")
    assert spec is not None
    (root,) = spec.submodule_search_locations or [""]
    files = [path.read_text(encoding="utf-8") for path in Path(root).rglob("*.py")]
    assert len(files) > 50
    return frozenset(re.findall(r"\w+", "\n".join(files)))


def asked_for(tree: ast.AST) -> Iterator[str]:
    """Names that a module imports from TransformerLens, or reads where they may be missing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "transformer_lens":
            yield from (alias.name for alias in node.names)
            yield from str(node.module).split(".")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            yield from (str(name.value) for name in node.args[1:2] if isinstance(name, ast.Constant))


def used(tree: ast.AST) -> set[str]:
    """Names, attributes and strings in code."""
    found = set(asked_for(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


SOURCES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("name", VERSIONED)
def test_a_release_has_the_names_that_it_should_have(name: str) -> None:
    """A name that a release gains or loses is noticed when the tests run on it, and it is used in the room at all."""
    assert (name in words()) == (MAJOR in VERSIONED[name])
    assert any(name in used(SOURCES[room]) for room in ROOM)


@pytest.mark.parametrize("room", ROOM)
def test_every_other_name_is_in_every_release(room: str) -> None:
    """Whatever the room imports from TransformerLens or reads with getattr is listed above, or known to this one."""
    names = set(asked_for(SOURCES[room])) - VERSIONED.keys() - HUGGING_FACE - OWN
    assert names
    assert names <= words()


def test_no_other_module_uses_such_a_name() -> None:
    """Bridge modules of this package's own architectures may name the classes that they extend."""
    for source, tree in SOURCES.items():
        if source not in ROOM and not source.startswith("baevski18/"):
            assert not used(tree) & VERSIONED.keys(), source


def test_which_class_a_release_has() -> None:
    """Release 2 has HookedTransformer alone, 3 both, 4 TransformerBridge alone."""
    assert (releases.bridge_class() is not None) == (MAJOR in "34")
    assert (releases.hooked_class() is not None) == (MAJOR in "23") == zoo.has_hooked_transformer()


def test_the_stated_range_holds_what_was_tested() -> None:
    """pyproject states a range, from the oldest tested release to the next major number, and what is not in it."""
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    (stated,) = re.findall(r'"(transformer_lens>=[^"]*)"', pyproject)
    (oldest, newest) = releases.TESTED
    (major, first), (_, last) = releases.UNSUPPORTED
    holes = "".join(f",!={major}.{minor}.*" for minor in range(first, last + 1))
    assert stated == f"transformer_lens>={oldest[0]}.{oldest[1]},<{newest[0] + 1}{holes}"
    installed = importlib.metadata.version("transformer_lens").split(".")
    assert oldest <= (int(installed[0]), int(installed[1])) <= newest


def small_model() -> object:
    return zoo.hooked("ln_gelu") if zoo.has_hooked_transformer() else zoo.model("gpt2")


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """The warning comes once a process: forget that it came, before and after."""
    releases.warn_of_unknown_release.cache_clear()
    yield
    releases.warn_of_unknown_release.cache_clear()


@pytest.mark.parametrize("version", ["2.17.0", "4.4.0", "5.0.0rc1", "31.7"])
def test_an_unknown_release_is_met_with_one_warning(
    version: str, asked_anew: None, monkeypatch: pytest.MonkeyPatch, tokens: torch.Tensor
) -> None:
    """One sentence, once, and the trace goes on."""
    model = small_model()
    monkeypatch.setattr(releases.importlib.metadata, "version", lambda name: version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert tlsv.trace(model, tokens, 9).log_prob < 0
    (ours,) = [warning for warning in caught if "tl-subvalues was tested with" in str(warning.message)]
    assert f"TransformerLens {version} is outside the range" in str(ours.message)
    assert "2.18 to 4.3" in str(ours.message)


@pytest.mark.parametrize("version", ["3.0.0", "3.4.1", "3.6.9"])
def test_a_release_that_is_not_supported_is_named(
    version: str, monkeypatch: pytest.MonkeyPatch, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """Not its models: the sentence is about the release, of a model that is there and of one that would be loaded."""
    model = small_model()
    monkeypatch.setattr(releases.importlib.metadata, "version", lambda name: version)
    for call in (lambda: tlsv.trace(model, tokens, 9), lambda: tlsv.load_model(str(tmp_path))):
        with pytest.raises(tlsv.UnsupportedModelError, match=f"TransformerLens {version} is not.*>=3.7'"):
            call()


@pytest.mark.parametrize("version", [None, "2.18.3", "3.7.0", "4.3.9", "unknown"])
def test_a_tested_release_is_met_in_silence(
    version: str | None, asked_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No warning within the range, none for a checkout without a version."""

    def told(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(releases.importlib.metadata, "version", told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        releases.warn_of_unknown_release()


@pytest.mark.skipif(zoo.has_bridge(), reason="this TransformerLens takes architectures from outside")
def test_an_architecture_of_ours_needs_a_newer_release(tmp_path: Path) -> None:
    """On TransformerLens 2 Baevski & Auli's model is refused in one sentence (by another name: it runs there)."""
    with pytest.raises(tlsv.UnsupportedModelError, match=r"needs TransformerLens 3\.9"):
        tlsv.baevski18.load(tmp_path)
