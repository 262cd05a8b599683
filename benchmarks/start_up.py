"""How long a command takes to say its help, and the package to be imported: CPU seconds of a process of its own."""

import resource
import subprocess
import sys

from common import missed, table

GOAL = 0.5  # seconds of CPU


def cpu_seconds(arguments: list[str], repeats: int = 5) -> float:
    """The least of several runs, user and system time together."""
    least = float("inf")
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(arguments, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least


def run() -> list[tuple[str, str]]:
    """The help of the command, and bare imports beside it."""
    help_line = [sys.executable, "-c", "from tl_subvalues.command.cli import main; main(['--help'])"]
    tasks = {
        "an empty Python": [sys.executable, "-c", ""],
        "import tl_subvalues": [sys.executable, "-c", "import tl_subvalues"],
        "tl-subvalues --help": help_line,
    }
    times = {name: cpu_seconds(arguments) for name, arguments in tasks.items()}
    rows = [[name, f"{seconds:.2f} s"] for name, seconds in times.items()]
    note = missed("the help, in seconds of CPU,", times["tl-subvalues --help"], GOAL, "see what is imported")
    return [("Start-up", f"{table(['task', 'CPU time'], rows)}\n{note}")]
