"""Kill a training run at random, again and again, and see that nothing of it shows.

    python benchmarks/soak.py --minutes 60

Trains a small network on two ranks under `torchrun --max-restarts` behind `pipeline.supervise`, and every few seconds
does one of these: SIGKILL to a rank, or to the whole tree (then the command is repeated), SIGSTOP to a rank for a
while, SIGTERM to the supervisor (then the command is repeated). When a run has finished, its curve is compared with
that of one that nobody disturbed, bit for bit; then the next begins, with another seed. Ends with `build/soak.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "build" / "demo" / "data"
KINDS = ("kill a rank", "kill everything", "stop a rank for a while", "SIGTERM")
RECIPE = {
    "data": {"path": str(DATA), "num_threads": 1},
    "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": 64, "dropout": 0.2},
    "head": {"margin": {"kind": "adaface", "scale": 16}, "sample_rate": 0.5},
    "training": {"epochs": 4, "global_batch": 64, "local_batch": 16},
    "checkpoint": {"every_epochs": 0.1},
    "monitor": {"every_steps": 1, "tensorboard": False},
    "ema": {"decay": 0.99},
}


def command(recipe: Path) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["--max-restarts", "1000", str(REPOSITORY / "launch" / "train.py"), "--config", str(recipe)]
    return [sys.executable, "-m", "pipeline.supervise", "--", *torchrun, *script]


def start(recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen(command(recipe), env=environment, stdout=file, stderr=file, start_new_session=True)


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def ranks(process: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    for child in tree(process):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            words = child.cmdline()
            is_rank = any(word.endswith("train.py") for word in words) and "--check" not in words
            if is_rank and "torch.distributed.run" not in words:
                yield child


def disturb(process: subprocess.Popen[bytes], draw: random.Random) -> str | None:
    """Do one thing; gives its name, or None where there was nobody to do it to."""
    kind = draw.choice(KINDS)
    victims = list(ranks(process))
    if kind in ("kill a rank", "stop a rank for a while") and not victims:
        return None
    with suppress(psutil.NoSuchProcess):
        if kind == "kill a rank":
            draw.choice(victims).kill()
        elif kind == "kill everything":
            for child in [psutil.Process(process.pid), *tree(process)]:  # it first, or it says that the rest crashed
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        elif kind == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            victim = draw.choice(victims)
            victim.suspend()
            time.sleep(draw.uniform(0.5, 3))
            victim.resume()
    return kind


def losses(output: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len({record["step"] for record in records}) == len(records), "a step stands twice"
    return {record["step"]: record["loss"] for record in records}


def one_run(folder: Path, seed: int, draw: random.Random, until: float, counts: Counter[str]) -> tuple[int, bool]:
    """An undisturbed run and a disturbed one; gives the number of starts and whether the curves are equal."""
    outputs = {}
    for name in ("undisturbed", "disturbed"):
        outputs[name] = folder / name
        recipe = folder / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE | {"output": str(outputs[name]), "seed": seed}))
    log = folder / "log"
    if start(folder / "undisturbed.yaml", log).wait():
        raise SystemExit(f"the undisturbed run failed: see {log}")
    num_starts = 0
    while True:
        process = start(folder / "disturbed.yaml", log)
        num_starts += 1
        while process.poll() is None:
            if time.monotonic() < until:
                time.sleep(draw.uniform(4, 20))
                kind = disturb(process, draw) if process.poll() is None else None
                if kind is not None:
                    counts[kind] += 1
            else:
                process.wait()
        if process.returncode == 0:
            break
        if process.returncode not in (75, -signal.SIGKILL):
            raise SystemExit(f"exit code {process.returncode}: see {log}")
    return num_starts, losses(outputs["undisturbed"]) == losses(outputs["disturbed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is missing: make demo writes it")
    draw, counts = random.Random(arguments.seed), Counter[str]()
    began = time.monotonic()
    until, results = began + 60 * arguments.minutes, []
    shutil.rmtree(arguments.out, ignore_errors=True)
    while time.monotonic() < until:
        folder = arguments.out / f"run-{len(results)}"
        folder.mkdir(parents=True)
        results.append(one_run(folder.absolute(), len(results), draw, until, counts))
        print(
            f"{(time.monotonic() - began) / 60:5.1f} min  run {len(results)}: {results[-1]}  {dict(counts)}", flush=True
        )
    num_equal = sum(is_equal for _, is_equal in results)
    summary = {
        "minutes": (time.monotonic() - began) / 60,
        "disturbances": dict(counts),
        "runs": len(results),
        "starts": sum(starts for starts, _ in results),
        "equal_curves": num_equal,
    }
    Path("build/soak.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary, indent=1))
    raise SystemExit(0 if num_equal == len(results) else 1)


if __name__ == "__main__":
    main()
