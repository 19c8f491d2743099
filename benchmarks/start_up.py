"""How long a run takes from its command to its first step after a resume.

    python benchmarks/start_up.py --data build/demo/data

Trains the demo's recipe on two ranks until its first checkpoint, stops it, and resumes copies of it, as a restarted job
does: `pipeline.supervise` checks the run in a process of its own, `torchrun` starts the ranks, they read the checkpoint
and train. A time ends when the first step is recorded, less the step itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import Figure, write

REPOSITORY = Path(__file__).parents[1]


def start(data: Path, output: Path) -> subprocess.Popen[bytes]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["launch/train.py", "--config", "configs/demo_cpu.yaml", f"data.path={data}", f"output={output}"]
    command = [sys.executable, "-m", "pipeline.supervise", "--", *torchrun, *script]
    with open(output.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(
            [*command, "monitor.every_steps=1", "checkpoint.every_epochs=0.5"],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def wait_for_step(process: subprocess.Popen[bytes], output: Path, after: int) -> dict[str, Any]:
    """The record of the first step after step `after`."""
    metrics = output / "metrics.jsonl"
    while process.poll() is None:
        text = metrics.read_text() if metrics.is_file() else ""
        for line in text[: text.rfind("\n") + 1].splitlines():
            record: dict[str, Any] = json.loads(line)
            if record["step"] > after:
                return record
        time.sleep(0.02)
    raise SystemExit(f"the run has ended: {output.with_suffix('.log').read_text()[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "build" / "demo" / "data")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as directory:
        stopped = Path(directory) / "stopped"
        process = start(arguments.data.absolute(), stopped)
        wait_for_step(process, stopped, after=0)
        stop(process)  # which saves
        last_step = json.loads((stopped / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        for number in range(arguments.times):
            output = Path(directory) / f"resumed-{number}"
            shutil.copytree(stopped, output)
            began_s = time.monotonic()
            process = start(arguments.data.absolute(), output)
            record = wait_for_step(process, output, last_step)
            found.append(time.monotonic() - began_s - record["step_s"])
            stop(process)
            print(f"{found[-1]:.1f} s to the first step; load average {os.getloadavg()[0]:.1f}", flush=True)
    figure = Figure("from the command to the first step of a resumed demo", "s", found, goal="10 s")
    print(figure.text())
    if arguments.json:
        write(arguments.json, [figure])


if __name__ == "__main__":
    main()
