"""Run all benchmarks and write RESULTS.md: `make bench`. Takes some ten minutes and 16 GB for the largest shape."""

import datetime
import platform
from importlib.metadata import version
from pathlib import Path

import baevski18
import effects
import growth
import large
import many
import operations
import real_model
import rows
import start_up
import torch

PACKAGES = ("tl-subvalues", "transformer-lens", "transformers", "torch")


def processor() -> str:
    """The processor's name and the threads in use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def main() -> None:
    """Run, print, and write."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    head = f"# Benchmarks\n\nMade by `make bench` on {datetime.date.today()}: {processor()}; {versions}.\n"
    head += "Every ratio is of two things timed in one run, turn by turn; times are the shortest of several.\n"
    if not torch.cuda.is_available():
        head += "No GPU was at hand.\n"
    sections = []
    with torch.no_grad():
        for benchmark in (start_up, real_model, operations, many, rows, effects, growth, large, baevski18):
            for title, text in benchmark.run():
                sections.append(f"## {title}\n\n{text}\n")
                print(sections[-1], flush=True)
    Path(__file__).with_name("RESULTS.md").write_text("\n".join([head, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
