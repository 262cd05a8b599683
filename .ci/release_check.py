"""What is in dist/ is what is to be released: versions agree, the source archive holds the project and its tests run.

usage: .venv/bin/python .ci/release_check.py dist
"""

import os
import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What makes no sense outside the repository.
NOT_IN_SDIST = {".pre-commit-config.yaml"}


def main(dist: Path) -> None:
    """Every check; the first that fails says what to do."""
    version = runpy.run_path(str(ROOT / "tl_subvalues" / "version.py"))["__version__"]
    wheel, sdist = dist / f"tl_subvalues-{version}-py3-none-any.whl", dist / f"tl_subvalues-{version}.tar.gz"
    require(
        {path.name for path in dist.iterdir()} == {wheel.name, sdist.name}, f"dist/ is not of {version}: make build"
    )
    require_versions(version)
    require_metadata(wheel, version)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
        require_whole(Path(folder) / f"tl_subvalues-{version}")
    print(f"{version} is ready")


def require(true: bool, otherwise: str) -> None:
    """Stop with a sentence unless it is true."""
    if not true:
        sys.exit(f"release-check: {otherwise}")


def require_versions(version: str) -> None:
    """The changelog and the citation speak of this version."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (.*)$", changelog, flags=re.MULTILINE)
    dated = first and re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", first[1])
    require(bool(dated), f"CHANGELOG.md begins with {first and first[1]!r}; call it '{version} (YYYY-MM-DD)'")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    require(f"\nversion: {version}\n" in citation, f"CITATION.cff has another version than {version}")


def require_metadata(wheel: Path, version: str) -> None:
    """The wheel's version, and a page for the package index whose links lead somewhere."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"tl_subvalues-{version}.dist-info/METADATA").decode("utf-8")
    metadata = Parser().parsestr(text)
    require(metadata["Version"] == version, f"the wheel is of {metadata['Version']}")
    local = re.findall(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", metadata.get_payload())
    require(not local, f"the package index's page would have links that lead nowhere: {local[:3]}")


def require_whole(source: Path) -> None:
    """The source archive holds every file of the repository, and its quick tests run from it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    missing = [name for name in listed.stdout.splitlines() if not (source / name).exists()]
    missing = [name for name in missing if name not in NOT_IN_SDIST]
    require(
        not missing, f"the source archive lacks {missing[:5]}: see pyproject.toml, [tool.hatch.build.targets.sdist]"
    )
    arguments = ["-q", "-n", "2", "--shapes=hooked", "-m", "not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=source, env={**os.environ, "PYTHONPATH": str(source)}
    )
    require(done.returncode == 0, "the source archive's own tests fail")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
