"""What the README claims is run here."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import readme_blocks

from tl_subvalues.command import cli

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block, on a tiny random `gpt2` in a folder; the last one scores every head, position and the bias."""
    pytest.importorskip("transformer_lens.model_bridge", reason="the README boots a TransformerBridge")
    monkeypatch.chdir(tmp_path)
    readme_blocks.make_tiny_gpt2(tmp_path / "gpt2")
    readme_blocks.make_tiny_baevski18(tmp_path / "adaptive_lm_wiki103.v2")
    namespace = readme_blocks.run(README)
    assert namespace["increase"].shape == (len(namespace["labels"]), 1)
    assert len(namespace["neurons"]) == 5


@pytest.mark.bridge
def test_the_page_on_baevski18_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python and its commands, on fairseq's tiny checkpoint under the archive's name."""
    page = ROOT / "docs" / "baevski18.md"
    monkeypatch.chdir(tmp_path)
    readme_blocks.make_tiny_baevski18(tmp_path / "adaptive_lm_wiki103.v2")
    assert readme_blocks.run(page)["trace"].target_token == "a"
    for line in re.findall(r"^tl-subvalues (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        cli.cli.main(shlex.split(line), standalone_mode=False)


def test_its_commands_exist() -> None:
    """Every `make` target and every option of the command that it shows; every sub-command is in it."""
    text = README.read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", text, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    for line in re.findall(r"^tl-subvalues .*$", text, flags=re.MULTILINE):
        command = cli.cli.commands[line.split()[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", line)) <= known
    assert all(f"tl-subvalues {name}" in text for name in cli.cli.commands)


def test_its_links_and_picture_are_there() -> None:
    """Local links lead to files of the project."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
@pytest.mark.real_model
def test_its_finding_is_true() -> None:
    """L23H4 is the strongest head and L24N1005 the second FFN neuron, writing what the README says."""
    import tl_subvalues as tlsv

    trace = tlsv.trace(tlsv.load_model(), "The capital of France is", " Paris")
    assert trace.heads(top=1)["label"].tolist() == ["L23H4"]
    assert trace.ffn_neurons(top=2)["label"].tolist()[1] == "L24N1005"
    picture = (ROOT / "docs" / "trace.svg").read_text(encoding="utf-8")
    assert "L24N1005" in picture
    assert f"{trace.ffn_neurons(top=1)['log_prob_increase'].iloc[0]:+.3f}" in picture
