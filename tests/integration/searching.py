"""Real searches for the tests: tiny networks over random crops, started as a user starts them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.integration import training

TUNE = training.REPOSITORY / "launch/tune.py"


def write_search(folder: Path, data: Path, held_out: Path, space: Mapping[str, Any], **more: Any) -> Path:
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


def workers(search: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes that train, those of the first rank first."""
    found = []
    for child in _descendants(search):
        try:
            if "TrainWorker" in " ".join(child.cmdline()):
                found.append((child.environ().get("RANK", ""), child))
        except psutil.Error:
            continue
    return [child for _, child in sorted(found, key=lambda pair: pair[0])]


def wait_for(search: subprocess.Popen[str], pattern: str, folder: Path, timeout_s: float = 120) -> Path:
    """Wait until a file is there while the search runs; gives the first."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
        assert search.poll() is None, training.finish(search)
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.05)


def _descendants(search: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    try:
        yield from psutil.Process(search.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
