"""Real training processes for the tests of resuming: tiny networks over random crops, started as a user starts them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
import torch.distributed as c10d
import yaml

from pipeline.config.errors import run_command
from tests.datasets import make_dataset
from tests.distributed.processes import forking_context, rank_environment

REPOSITORY = Path(__file__).parents[2]
CROP_PX = 32


# With larger steps so small a network multiplies rounding errors by 3 to 10 a step: a relative change of
# 1e-7 in the initial weights of one process moves the losses by 1e-2 within ten steps. With these rates, a scale of
# 8 and batch norm over 16 crops it moves them by less than 1e-5 in 25 steps, while the loss falls from 3.8 to 0.8.
SGD = {"backbone": {"kind": "sgd", "lr": 1e-4}, "head": {"kind": "sgd", "lr": 1e-4}}
ADAMW = {"backbone": {"kind": "adamw", "lr": 1e-3}, "head": {"kind": "adamw", "lr": 1e-3}}


def make_people(root: Path) -> Path:
    """A small data set to train on."""
    return make_dataset(root, num_samples=120, num_identities=8, crop_px=CROP_PX)


def make_strangers(root: Path) -> Path:
    """Other people, to be validated on: the split `train` of a data set of their own."""
    return make_dataset(root, num_samples=60, num_identities=6, crop_px=CROP_PX, seed=9)


def write_recipe(
    path: Path, data: Path, output: Path, optim: dict[str, object] | None = None, **training: object
) -> Path:
    """A recipe whose every step is recorded; dropout is on, so that its masks are tested too."""
    recipe = {
        "output": str(output),
        "data": {"path": str(data), "num_threads": 1},
        "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": 64, "dropout": 0.2},
        "head": {"margin": {"kind": "arcface", "scale": 8, "margin": 0.1}},
        "optim": optim or SGD,
        "training": {"epochs": 6, "global_batch": 64, "local_batch": 16, **training},
        "checkpoint": {"every_epochs": 0.3, "keep": 100},
        "monitor": {"every_steps": 1, "tensorboard": False},
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def command(recipe: Path, ranks: int, overrides: Sequence[str] = ()) -> list[str]:
    """The command line of a run: bare for one rank, torchrun for more."""
    script = [str(REPOSITORY / "launch" / "train.py"), "--config", str(recipe), *overrides]
    if ranks == 1:
        return [sys.executable, *script]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, *script]


def start(recipe: Path, ranks: int, overrides: Sequence[str] = (), supervised: bool = False) -> subprocess.Popen[str]:
    """Start a run in a process group of its own, its output captured."""
    before = [sys.executable, "-m", "pipeline.supervise", "--"] if supervised else []
    return start_command([*before, *command(recipe, ranks, overrides)])


def start_command(words: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, its output captured."""
    return subprocess.Popen(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 150) -> str:
    """Wait for a run to end; gives what it printed. Kills the whole group at the time limit."""
    try:
        text, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        text, _ = process.communicate()
        raise AssertionError(f"no end after {timeout_s} s:\n{text}") from None
    return text


def run(recipe: Path, ranks: int, overrides: Sequence[str] = ()) -> str:
    """Run to the end and expect success; gives what it printed.

    The program is the same as in `start`, its processes are forked from one that has loaded their modules: they begin
    within a second, where a launcher and new interpreters need nine.
    """
    context = forking_context()
    store = c10d.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    words = [str(REPOSITORY / "launch" / "train.py"), "--config", str(recipe), *overrides]
    with tempfile.NamedTemporaryFile() as output:
        processes = []
        for rank in range(ranks):
            environment = dict(os.environ)
            if ranks > 1:
                environment |= rank_environment(rank, ranks, store.port)
            place = (output.name, str(Path.cwd()), environment)
            processes.append(context.Process(target=_be_rank, args=(words, *place), daemon=True))
        try:
            for process in processes:
                process.start()
            deadline_s = time.monotonic() + 150
            for process in processes:
                process.join(max(0.0, deadline_s - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
                process.join()
        text = Path(output.name).read_text()
    assert [process.exitcode for process in processes] == [0] * ranks, text
    assert "Warning" not in text, text
    return text


def _be_rank(words: list[str], output: str, folder: str, environment: dict[str, str]) -> None:
    target = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = words
    from launch.train import app, load_modules

    run_command(app, prepare=load_modules)


def kill_at_step(
    recipe: Path,
    ranks: int,
    output: Path,
    step: int,
    signum: int,
    delay_s: float = 0.0,
    only_launcher: bool = False,
    saved: str = "latest",
) -> str:
    """Start a run and signal it when its metrics reach a step: SIGKILL to all its processes, others to the launcher.

    Not before `saved` is there among the checkpoints, which are written while training goes on; "" waits for none.
    """
    process = start(recipe, ranks)
    wait_for_step(process, output, step)
    while saved and process.poll() is None and not (output / "checkpoints" / saved).exists():
        time.sleep(0.002)
    time.sleep(delay_s)
    if signum == signal.SIGKILL and not only_launcher:
        kill_tree(process.pid)
    else:
        process.send_signal(signum)
    return finish(process)


def wait_for_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    """Wait until the run has recorded a step, or has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and max(losses(output), default=0) < step:
        time.sleep(0.005)


def kill_tree(pid: int) -> None:
    """SIGKILL the launcher and its ranks at once; the ranks are in sessions of their own, so a group is not enough."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have finished
        launcher = psutil.Process(pid)
        for process in [*launcher.children(recursive=True), launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def losses(output: Path) -> dict[int, float]:
    """Loss of each recorded step."""
    return metric(output, "loss")


def metric(output: Path, name: str) -> dict[int, float]:
    """A metric at each recorded step, where every step has it."""
    return {int(record["step"]): record[name] for record in _checked(_records(output))}


def records(output: Path, name: str) -> dict[int, float]:
    """A metric at the recorded steps that have it; a line that a kill cut short does not count."""
    return {int(record["step"]): record[name] for record in _checked(_records(output)) if name in record}


def _checked(found: list[dict[str, float]]) -> list[dict[str, float]]:
    steps = [record["step"] for record in found]
    assert len(set(steps)) == len(steps), "a step stands twice in the metrics"
    return found


def _records(output: Path) -> list[dict[str, float]]:
    path = output / "metrics.jsonl"
    found = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
