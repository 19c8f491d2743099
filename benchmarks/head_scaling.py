"""What the head costs with classes, with the batch and with ranks.

    python benchmarks/head_scaling.py                                # 10,000 to 1,000,000 classes on one rank
    python benchmarks/head_scaling.py --classes 100000 --batch 256 1024 4096 --ranks 1 2 4

A full step, forward, backward and SGD, at sample rate 1, D = 512: the first rank's time and extra memory, and the share
of the peak, which is the time of a dense layer's three products at the rate of one large product, measured on the same
core in the same run. With several numbers of ranks `--classes` is what each rank holds, and in place of the step's time
stands what a rank's process computes, which does not grow where ranks share cores: it must not grow with ranks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from figures import Figure, write
from head_step import DIM, extra_memory_mib, ours, timed
from ranks import run_on_ranks

from pipeline import dist
from pipeline.engine.memory import keep_freed_memory

PEAK_SIDE = 2048
"""Of the square product whose rate is the peak."""


def main() -> None:
    """Parse the command line, start the ranks of each size, print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[256], help="global batch")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    for batch in arguments.batch:
        for classes in arguments.classes:
            for ranks in arguments.ranks:
                found = run_on_ranks(measure, ranks, classes * ranks, batch, arguments.repeats)
                figures += describe(found, ranks, classes * ranks, batch, len(arguments.ranks) > 1)
                print("\n".join(figure.text() for figure in figures[-2:]), flush=True)
    if arguments.json:
        write(arguments.json, figures)


def measure(results: Any, classes: int, batch: int, repeats: int) -> None:
    """Take the steps on one rank; rank 0 tells. Collective on all ranks."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.initialise("cpu")
    step = ours(classes, batch, 1.0)
    found: dict[str, list[float]] = {"memory": [extra_memory_mib(lambda: [step(0), step(1)])]}
    found |= {"step": [], "computing": [], "peak": []}
    for number in range(repeats):
        before = time.process_time()
        found["step"].append(timed(lambda number=number: step(2 + number)))
        found["computing"].append(time.process_time() - before)
        found["peak"].append(peak_flops())
    if dist.rank() == 0:
        results.put(found)
    dist.shutdown()


def peak_flops() -> float:
    """Operations a second of processor time of one large product in float32, by all ranks at once."""
    left, right = torch.randn(PEAK_SIDE, PEAK_SIDE), torch.randn(PEAK_SIDE, PEAK_SIDE)
    out = torch.empty(PEAK_SIDE, PEAK_SIDE)
    dist.barrier()
    before = time.process_time()
    torch.mm(left, right, out=out)
    return 2 * PEAK_SIDE**3 / (time.process_time() - before)


def describe(found: dict[str, list[float]], ranks: int, classes: int, batch: int, by_ranks: bool) -> list[Figure]:
    """The figures of one size."""
    what = f"head, {classes:,} classes, batch {batch:,}, {ranks} rank{'s' if ranks > 1 else ''}"
    operations = 3 * 2 * batch * classes / ranks * DIM
    least = [operations / statistics.median(found["peak"])]
    time_of = "computing" if by_ranks else "step"
    told = "a rank computes" if by_ranks else "a step"
    return [
        Figure(f"{what}: {told}", "s", found[time_of], limit=("three products at the peak", least)),
        Figure(f"{what}: extra memory", "MiB", found["memory"]),
    ]


if __name__ == "__main__":
    main()
