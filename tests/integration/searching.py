"""Real searches for the tests: tiny networks over random crops, started as a user starts them."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration import training

TUNE = training.REPOSITORY / "launch/tune.py"


def write_search(
    folder: Path,
    data: Path,
    held_out: Path,
    space: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A search over a tiny recipe, with a validation an epoch and no comparison; gives its file."""
    recipe = training.write_recipe(
        folder / "recipe.yaml", data, folder / "run", epochs=3, global_batch=32, local_batch=8
    )
    tree = {
        "recipe": str(recipe),
        "output": str(folder / "search"),
        "overrides": {
            "validation.sets": {"strangers": {"path": str(held_out), "split": "train"}},
            "checkpoint.every_epochs": 1,
            **(overrides or {}),
        },
        "space": dict(space),
        "scheduler": {"kind": "none"},
        "workers": {"count": 2},
        "comparison_seeds": [],
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({**tree, **more}))
    return path


def start(search: Path, *options: str) -> subprocess.Popen[str]:
    """Start a search in a process group of its own, on a port of the dashboard that nobody waits for."""
    return training.start_command(
        [sys.executable, str(TUNE), "--config", str(search), "--dashboard-port", "0", *options]
    )


def run(search: Path, *options: str, timeout_s: float = 240) -> str:
    """Run a search to its end; gives what it printed."""
    process = start(search, *options)
    text = training.finish(process, timeout_s)
    assert process.returncode == 0, text
    return text


def workers(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes that train, below a search or a node."""
    return _named(launcher, "RayTrainWorker")


def kill(search: subprocess.Popen[str]) -> None:
    """SIGKILL a search alone; its trials have to end by themselves. (Ray's agents take a minute to notice.)"""
    trials = _named(search, "RayTrainWorker") + _named(search, "ImplicitFunc") + _named(search, "TrainController")
    assert trials
    search.kill()
    search.communicate()
    _, alive = psutil.wait_procs(trials, 60)
    assert not alive


def wait_for_cluster(address: str, num_cpus: int, timeout_s: float = 90) -> None:
    """Wait until so many CPUs have joined."""
    script = f"import ray; ray.init({address!r}, log_to_driver=False); print(ray.cluster_resources().get('CPU', 0))"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(subprocess.SubprocessError):
            asked = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True
            )
            if float(asked.stdout.split()[-1]) >= num_cpus:
                return
        time.sleep(1)
    raise AssertionError(f"the cluster at {address} has no {num_cpus} CPUs")


def free_port() -> int:
    """A port that is free and that Ray does not keep for its workers (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port >= 20_000:
            return port


def wait_for(search: subprocess.Popen[str], pattern: str, folder: Path, timeout_s: float = 120) -> Path:
    """Wait until a file is there while the search runs; gives the first."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
        assert search.poll() is None, training.finish(search)
        if time.monotonic() > deadline:
            raise AssertionError(f"no {pattern}: {training.finish(search, 0)}")
        time.sleep(0.05)


@contextmanager
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the clusters that are started while the block runs; Ray's sockets must have short paths."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@contextmanager
def node(*options: str) -> Iterator[subprocess.Popen[str]]:
    """A Ray node of a process group of its own while the block runs, the head or another."""
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *options]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        training.kill_tree(process.pid)
        process.wait()


def _named(launcher: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(launcher.pid).children(recursive=True):
        with suppress(psutil.Error):
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found
