"""Ranks, agents and nodes that are killed at any instant: the run goes on by itself, and its curve has no seam."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from pipeline.checkpoint import latest_checkpoint, read_info
from tests.datasets import make_dataset
from tests.integration import training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=400, num_identities=13, crop_px=training.CROP_PX)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    training.run(training.write_recipe(folder / "recipe.yaml", data, folder / "run"), 2)
    return folder / "run"


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, str(training.REPOSITORY / "launch" / "train.py")]


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to a file; killed with all its children at the end."""
    with open(log, "wb") as file:
        # what pipeline.supervise sets, too: without it a start may find the addresses of the ranks before it
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        kill_tree(process)
        process.wait()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for each in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "train.py" in " ".join(command_line(child))]
    return []


def command_line(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.cmdline()
    return []


def wait_until(condition: object, log: Path, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def last_step(output: Path) -> int:
    return max(training.losses(output), default=0)


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_rank_killed_at_any_instant(tmp_path: Path, data: Path, undisturbed: Path, num_kills: int) -> None:
    output, log, draw = tmp_path / "run", tmp_path / "log", random.Random(num_kills)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "100")
    with started([*torchrun(*options), "--config", str(recipe)], log) as process:
        killed: set[int] = set()
        while len(killed) < num_kills and process.poll() is None:
            before = last_step(output)
            # so that each start gets somewhere, at times into the middle of a save
            wait_until(lambda: process.poll() is not None or last_step(output) != before, log)  # noqa: B023
            time.sleep(draw.uniform(0, 0.2))
            if ranks := [rank for rank in ranks_of(process) if rank.pid not in killed]:
                victim = draw.choice(ranks)
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed.add(victim.pid)
        assert process.wait(timeout=300) == 0, log.read_text()
    text = log.read_text()
    # a rank that is killed before the first checkpoint begins anew
    num_starts = text.count("training 400 samples") + text.count("nothing lost, nothing repeated")
    assert num_starts > len(killed) > 0, text
    assert training.losses(output) == training.losses(undisturbed), text


@pytest.mark.slow
def test_nodes_leave_and_come_back_and_the_store_outlives_them(tmp_path: Path, data: Path) -> None:
    output, straight = tmp_path / "run", tmp_path / "straight"
    training.run(training.write_recipe(tmp_path / "straight.yaml", data, straight, epochs=12), 2)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output, epochs=12)
    with started([sys.executable, "-m", "pipeline.rendezvous", "--port", "0"], tmp_path / "store") as store:
        wait_until(lambda: "port" in (tmp_path / "store").read_text(), tmp_path / "store")
        port = (tmp_path / "store").read_text().split()[-1]
        options = (
            *("--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "100"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "run"),
            *("--rdzv-conf", "is_host=false,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"),
        )
        command = [sys.executable, "-m", "pipeline.supervise", "--", *torchrun(*options), "--config", str(recipe)]
        logs = [tmp_path / f"agent{number}" for number in range(3)]
        with started(command, logs[0]) as first, started(command, logs[1]) as second:
            wait_until(lambda: is_saved_by(output, 2), logs[0])
            kill_tree(second)
            seen = last_step(output)
            wait_until(lambda: "2 → 1 ranks" in logs[0].read_text(), logs[0])
            wait_until(lambda: last_step(output) > seen and is_saved_by(output, 1), logs[0])
            with started(command, logs[2]) as third:
                wait_until(lambda: "1 → 2 ranks" in logs[0].read_text() + logs[2].read_text(), logs[0])
                kill_tree(first)  # which was there from the beginning: with c10d's own store all would end here
                assert third.wait(timeout=300) == 0, logs[2].read_text()
        assert store.poll() is None
        store.send_signal(signal.SIGTERM)
        assert store.wait(timeout=30) == 0
    found, expected = training.losses(output), training.losses(straight)
    assert sorted(found) == sorted(expected)
    # another number of ranks adds up in another order, and so small a network multiplies that
    assert all(found[step] == pytest.approx(expected[step], rel=1e-3) for step in expected)


def is_saved_by(output: Path, num_ranks: int) -> bool:
    path = latest_checkpoint(output / "checkpoints")
    return path is not None and read_info(path).world_size == num_ranks
