"""How long the command lines take to print their help, against the bare interpreter.

    python benchmarks/cli_start.py

Each is a fresh process, from its start to its end; they take turns with an interpreter that does nothing, the limit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from figures import Figure, write

REPOSITORY = Path(__file__).parents[1]
COMMANDS = {
    "preprocess --help": ["-m", "preprocess.cli", "--help"],
    "launch/train.py --help": ["launch/train.py", "--help"],
    "launch/evaluate.py --help": ["launch/evaluate.py", "--help"],
}
BARE = ["-c", "pass"]


def main() -> None:
    """Take turns and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    bare = []
    for command in (BARE, *COMMANDS.values()):
        seconds(command)  # files are read from the disk, and compiled, once
    for _ in range(arguments.repeats):
        bare.append(seconds(BARE))
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    figures = [
        Figure(name, "s", found, limit=("interpreter that does nothing", bare), goal="0.5 s")
        for name, found in times.items()
    ]
    print("\n".join(figure.text() for figure in figures))
    if arguments.json:
        write(arguments.json, figures)


def seconds(arguments: Sequence[str]) -> float:
    """Time of an interpreter with these arguments."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
