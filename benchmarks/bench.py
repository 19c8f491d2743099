"""Every claim about speed and memory, measured one after another by one command.

    make bench              # this machine's processors: python benchmarks/bench.py
    make bench-gpu          # its GPU: python benchmarks/bench.py --gpu

Makes the data it needs, runs each benchmark as a process, and joins their figures into OUTPUT/figures.json, bench.md
(a table) and bench.png (a plot). Figures that were measured for this state of the source are kept, so the same command
goes on after a stop; --again measures them anew. A benchmark that fails is reported, the others go on, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_report
import figures
import psutil

REPOSITORY = Path(__file__).parents[1]
DATA = Path("build/bench/data")
ANNOTATIONS = f"{DATA}/photos/annotations.parquet"
PATIENCE = 10
"""A benchmark that takes so many times its budget hangs."""


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder that takes `--json FILE`."""

    name: str
    command: Sequence[str]
    """Without the interpreter, from the repository's root."""
    budget_s: int
    """About what it takes on two cores that nobody else uses."""


# people and photos of the demo, so that its figures can be compared with these; their landmarks are known, so nothing
# has to be detected but in the benchmark that measures it
PREPARATION = (
    ("-m", "preprocess.cli", "synth", f"{DATA}/photos", "--identities", "200", "--photos", "20"),
    ("-m", "preprocess.cli", "shard", ANNOTATIONS, f"{DATA}/aligned64", "--size", "64", "--val-identities", "0.2"),
    ("-m", "preprocess.cli", "shard", ANNOTATIONS, f"{DATA}/aligned112", "--size", "112"),
)

CPU = (
    Benchmark("cli_start", ("benchmarks/cli_start.py",), 10),
    Benchmark("head_step", ("benchmarks/head_step.py",), 200),
    Benchmark("loader", ("benchmarks/loader.py", "--data", f"{DATA}/aligned112"), 55),
    Benchmark("sharding", ("benchmarks/sharding.py", f"{DATA}/photos", "--count", "200"), 45),
    Benchmark("backbone_step", ("benchmarks/backbone_step.py",), 120),
    Benchmark("whole_training", ("benchmarks/whole_training.py", "--data", f"{DATA}/aligned64"), 200),
    Benchmark("safety", ("benchmarks/safety.py", "--data", f"{DATA}/aligned64"), 190),
    Benchmark("triplet_mining", ("benchmarks/triplet_mining.py", "--shapes", "256x4", "1024x4"), 40),
    Benchmark(
        "order",
        ("benchmarks/order.py", "--rows", "4000000", "--people", "100000", "--output", f"{DATA}/order"),
        30,
    ),
    Benchmark(
        "checkpoint",
        ("benchmarks/checkpoint.py", "--data", f"{DATA}/aligned64", "--epochs", "5", "--out", f"{DATA}/checkpoint"),
        100,
    ),
    Benchmark("start_up", ("benchmarks/start_up.py", "--data", f"{DATA}/aligned64"), 60),
    Benchmark(
        "evaluation",
        ("benchmarks/evaluation.py", "--pairs", "4000000", "--search", "100000", "--probes", "2048"),
        65,
    ),
)
GPU = (
    Benchmark("head_gpu", ("benchmarks/head_gpu.py",), 60),
    Benchmark(
        "backbone_step",
        ("benchmarks/backbone_step.py", "--device", "cuda", "--batch", "128", "--backbones", "iresnet50"),
        120,
    ),
    Benchmark(
        "whole_training",
        ("benchmarks/whole_training.py", "--device", "cuda", "--ranks", "1", "--data", f"{DATA}/aligned64"),
        120,
    ),
)


def main() -> int:
    """Parse the command line; 0: all figures are there, 1: a benchmark failed, 2: there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="the benchmarks of a GPU")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--output", type=Path, help="default: build/bench, or build/bench-gpu")
    arguments = parser.parse_args()
    if arguments.gpu and not has_gpu():
        print("no CUDA device: bench-gpu measures a GPU; `make bench` measures the processors", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what runs is ended on the way out
    output = arguments.output or REPOSITORY / "build" / ("bench-gpu" if arguments.gpu else "bench")
    if arguments.gpu:
        return run_all(GPU, PREPARATION[:2], output, source_state(), arguments.again)
    return run_all(CPU, PREPARATION, output, source_state(), arguments.again)


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def run_all(
    benchmarks: Sequence[Benchmark], preparation: Sequence[Sequence[str]], output: Path, state: str, again: bool
) -> int:
    """Run what has no figures yet for this state of the source, then report; the exit code."""
    folder = output / state
    folder.mkdir(parents=True, exist_ok=True)
    missing = [one for one in benchmarks if again or not (folder / f"{one.name}.json").is_file()]
    print(f"{len(missing)} of {len(benchmarks)} benchmarks to run, about {minutes(missing)} minutes on a quiet machine")
    if missing:
        for number, command in enumerate(preparation, start=1):
            print(f"data {number}/{len(preparation)}: {' '.join(command)}", flush=True)
            if run(command, folder / "data.log", timeout_s=None) != 0:
                print(f"failed:\n{last_lines(folder / 'data.log')}", flush=True)
                return 1
    failures: dict[str, str] = {}
    for number, one in enumerate(missing, start=1):
        print(f"[{number}/{len(missing)}] {one.name} (about {one.budget_s} s)", end=" … ", flush=True)
        started = time.monotonic()
        failure = measure(one, folder)
        print(failure or "done", f"in {time.monotonic() - started:.0f} s", flush=True)
        if failure:
            failures[one.name] = failure
            print(last_lines(folder / f"{one.name}.log"), flush=True)
    report(benchmarks, folder, output, failures)
    return 1 if failures else 0


def measure(benchmark: Benchmark, folder: Path) -> str:
    """Run one benchmark; its figures appear in the folder when all of them are there. What went wrong, or nothing."""
    written, kept = folder / f"{benchmark.name}.json.part", folder / f"{benchmark.name}.json"
    written.unlink(missing_ok=True)
    kept.unlink(missing_ok=True)
    command = [*benchmark.command, "--json", str(written.absolute())]
    timeout_s = PATIENCE * benchmark.budget_s
    code = run(command, folder / f"{benchmark.name}.log", timeout_s)
    if code is None:
        return f"failed: no end after {timeout_s} s"
    if code != 0:
        return f"failed: exit code {code}"
    if not written.is_file():
        return "failed: no figures written"
    os.replace(written, kept)
    return ""


def run(command: Sequence[str], log: Path, timeout_s: float | None) -> int | None:
    """Exit code of an interpreter with these arguments; none if its time ran out."""
    with open(log, "wb") as sink:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # its time ran out, or somebody stops us
                end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    parent = psutil.Process(process.pid)
    for one in (*parent.children(recursive=True), parent):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def report(benchmarks: Sequence[Benchmark], folder: Path, output: Path, failures: Mapping[str, str]) -> None:
    """Join the figures that are there; print them and write the table and the plot."""
    measured, machines = {}, {}
    for one in benchmarks:
        path = folder / f"{one.name}.json"
        if path.is_file():
            measured[one.name] = figures.read(path)
            machines[one.name] = json.loads(path.read_text())["machine"]
    joined: dict[str, Any] = {"source": folder.name, "machines": machines, "failures": dict(failures)}
    joined["figures"] = [{"benchmark": name, **asdict(one)} for name, found in measured.items() for one in found]
    (output / "figures.json").write_text(json.dumps(joined, indent=1) + "\n")
    for found in measured.values():
        print("\n".join(one.text() for one in found))
    (output / "bench.md").write_text(bench_report.table(measured, machines, folder.name, failures))
    written = ["figures.json", "bench.md"]
    if bench_report.plot(measured, output / "bench.png"):
        written.append("bench.png")
    print(f"{output}: {', '.join(written)}")
    for name, failure in failures.items():
        print(f"{name} {failure} ({folder / name}.log)")


def source_state() -> str:
    """The commit, with a digest of what was changed since; without git, the time: nothing is kept then."""
    try:
        commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
        changes = git("diff", "HEAD", "--", "*.py", "*.yaml")
    except (OSError, subprocess.CalledProcessError):
        return time.strftime("%Y%m%d-%H%M%S")
    return commit + ("-" + hashlib.sha256(changes).hexdigest()[:8] if changes else "")


def git(*arguments: str) -> bytes:
    """What a git command prints."""
    return subprocess.run(["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True).stdout


def minutes(benchmarks: Sequence[Benchmark]) -> int:
    """The budget in whole minutes, rounded up."""
    return -(-sum(one.budget_s for one in benchmarks) // 60)


def last_lines(log: Path) -> str:
    """The end of a log, indented."""
    lines = log.read_text(errors="replace").splitlines()[-5:]
    return "\n".join(f"    {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
