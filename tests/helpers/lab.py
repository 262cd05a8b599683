"""JupyterLab without a screen: a notebook in a folder, served on the loopback address to a browser of the tests."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

_QUIET = {"LabApp.news_url": "None", "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate"}


def notebook(path: Path, *cells: str) -> Path:
    """A notebook of cells that have not run."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
    return path


def environment(folder: Path) -> dict[str, str]:
    """Of Jupyter's programs: what they write goes into the folder."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    places = {name: str(folder / name.lower()) for name in (*names, "IPYTHONDIR")}
    return {**os.environ, **places, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


@contextmanager
def lab(path: Path, folder: Path) -> Iterator[str]:
    """The address of a notebook in JupyterLab.

    Args:
        path: of the notebook.
        folder: for what Jupyter writes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    given = {"ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.root_dir": path.parent}
    options = [f"--{name}={value}" for name, value in {**given, "IdentityProvider.token": token, **_QUIET}.items()]
    program = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *options]
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(program, env=environment(folder), stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "lab.log").read_text()
                assert time.monotonic() < until, (folder / "lab.log").read_text()
                time.sleep(0.3)
        yield f"{address}/lab/tree/{path.name}?token={token}"
    finally:
        process.terminate()
        process.wait(30)
