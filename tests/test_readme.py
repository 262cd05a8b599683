"""What the README claims is run here."""

import html
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import readme_blocks
from PIL import Image

from tl_subvalues.command import cli

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import make_pictures  # noqa: E402

README = ROOT / "README.md"


@pytest.mark.slow
@pytest.mark.real_model
def test_its_python_runs_and_gives_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block; labels, increases, total effects and words are those that stand in the table."""
    monkeypatch.chdir(tmp_path)
    namespace = readme_blocks.run(README)
    neurons = namespace["neurons"]
    total = (neurons["label"] + "@4").map(namespace["effects"])
    rows = table_of(README)
    assert [row[0] for row in rows] == neurons["label"].tolist()
    assert [float(row[1]) for row in rows] == pytest.approx(neurons["log_prob_increase"].tolist(), abs=1e-3)
    assert [float(row[2]) for row in rows] == pytest.approx(total.tolist(), abs=1e-3)
    assert [row[3] for row in rows] == [", ".join(map(str.strip, words)) for words in neurons["writes"]]


def table_of(page: Path) -> list[list[str]]:
    """Cells of the rows of a page's table of FFN neurons, with minus signs that Python reads."""
    text = page.read_text(encoding="utf-8").replace("−", "-")
    rows = re.findall(r"^\| (L\d+N\d+ \|.*) \|$", text, flags=re.MULTILINE)
    assert rows
    return [row.split(" | ") for row in rows]


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.any_release
def test_the_table_of_orders() -> None:
    """Increase, total effect and what is lost without it, as docs/explanation/orders.md has them."""
    page = ROOT / "docs" / "explanation" / "orders.md"
    namespace = readme_blocks.run(page)
    rows = table_of(page)
    assert [row[:3] for row in rows] == [row[:3] for row in table_of(README)]
    lost = namespace["at"].map(namespace["measured"]).tolist()
    assert [float(row[3]) for row in rows] == pytest.approx(lost, abs=1e-3)


@pytest.mark.bridge
def test_the_page_on_baevski18_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python and its commands, on fairseq's tiny checkpoint under the archive's name."""
    page = ROOT / "docs" / "baevski18.md"
    monkeypatch.chdir(tmp_path)
    readme_blocks.make_tiny_baevski18(tmp_path / "adaptive_lm_wiki103.v2")
    (tmp_path / "demos").symlink_to(ROOT / "demos")
    assert readme_blocks.run(page)["trace"].target_token == "a"
    for line in re.findall(r"^tl-subvalues (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        cli.cli.main(shlex.split(line), standalone_mode=False)


@pytest.fixture(scope="module")
def finding() -> Any:
    """The trace that the pictures are of."""
    import tl_subvalues as tlsv

    return tlsv.trace(tlsv.load_model(), "The capital of France is", " Paris")


@pytest.mark.any_release
@pytest.mark.slow
@pytest.mark.real_model
def test_its_finding_is_true(finding: Any) -> None:
    """L23H4 is the strongest head and L24N1005 the second FFN neuron; the picture is what the command draws."""
    assert finding.heads(top=1)["label"].tolist() == ["L23H4"]
    assert finding.ffn_neurons(top=2)["label"].tolist()[1] == "L24N1005"
    picture = readings((ROOT / "docs" / "trace.svg").read_text(encoding="utf-8"))
    drawn = readings(make_pictures.terminal(finding))
    assert [one for one in picture if isinstance(one, str)] == [one for one in drawn if isinstance(one, str)]
    assert picture == [pytest.approx(one, abs=2e-3, rel=2e-3) if isinstance(one, float) else one for one in drawn]


@pytest.mark.any_release
@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("name", ["activations", "page"])
def test_the_pictures_are_current(name: str, finding: Any, tmp_path: Path) -> None:
    """`make pictures` would draw the same: of its pixels, next to none differ by more than a shade."""
    if name == "page" and not Path("/usr/bin/chromium").exists():
        pytest.skip("the page's picture is a browser's")
    getattr(make_pictures, name)(finding, tmp_path / "drawn.png")
    drawn, kept = (pixels(path) for path in (tmp_path / "drawn.png", ROOT / "docs" / f"{name}.png"))
    assert drawn.shape == kept.shape
    assert (np.abs(drawn - kept).max(-1) > 40).mean() < 2e-3, "run `make pictures`"


@pytest.mark.any_release
def test_a_stale_picture_is_seen() -> None:
    """One bar of another length is more than the comparison lets pass."""
    kept = pixels(ROOT / "docs" / "activations.png")
    other = kept.copy()
    other[100:120, 300:340] = 255.0 - other[100:120, 300:340]
    assert (np.abs(other - kept).max(-1) > 40).mean() > 2e-3


def pixels(path: Path) -> np.ndarray:
    """[height, width, colour], 0 to 255."""
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


@pytest.mark.any_release
def test_every_picture_is_drawn_by_make_pictures() -> None:
    """Of docs/, so that none is left out of the comparison."""
    pictures = {path.name for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg", ".jpg")}
    assert pictures == {"trace.svg", "activations.png", "page.png"}


def readings(svg: str) -> list[str | float]:
    """Words and numbers that stand in a picture, in order."""
    shown = html.unescape(" ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))).replace("\xa0", " ")
    return [float(one) if re.fullmatch(r"[+-]?\d[\d.]*(e[+-]\d+)?", one) else one for one in shown.split()]
