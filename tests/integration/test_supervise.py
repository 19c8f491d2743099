"""The supervisor around a launcher that restarts killed ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.checkpoint import latest_checkpoint, read_info
from pipeline.config.errors import DataError
from pipeline.config.load import load_config
from pipeline.engine.run import plan_run
from tests.datasets import make_dataset, rotten_copy
from tests.integration import training

pytestmark = pytest.mark.timeout(240)


TRAIN = training.REPOSITORY / "launch/train.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=400, num_identities=13, crop_px=training.CROP_PX)


def start_restarting(recipe: Path, max_restarts: int, *overrides: str) -> subprocess.Popen[str]:
    """A supervised run of two ranks, which the launcher starts again when one dies."""
    words = training.command(recipe, 2, overrides)
    place = words.index("--standalone")
    launcher = [*words[:place], "--max-restarts", str(max_restarts), *words[place:]]
    return training.start_command([sys.executable, "-m", "pipeline.supervise", "--", *launcher])


def kill_a_rank(supervisor: subprocess.Popen[str], rank: int) -> None:
    for child in psutil.Process(supervisor.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            child.kill()


def test_a_killed_rank_is_started_again_and_the_run_finishes(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output, epochs=4)
    process = start_restarting(recipe, 1)
    training.wait_for_step(process, output, 9)
    kill_a_rank(process, 1)
    text = training.finish(process)
    assert process.returncode == 0, text
    assert "resumed at step" in text
    assert sorted(training.losses(output)) == list(range(1, 26))


@pytest.mark.slow
def test_a_kill_too_many_is_a_crash(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    process = start_restarting(training.write_recipe(tmp_path / "recipe.yaml", data, output), 0)
    training.wait_for_step(process, output, 3)
    kill_a_rank(process, 0)
    text = training.finish(process)
    assert process.returncode == 1, text


def test_asked_to_stop_while_ranks_are_started_again(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output, epochs=1000)
    process = start_restarting(recipe, 3)
    training.wait_for_step(process, output, 9)
    saved = latest_checkpoint(output / "checkpoints")
    assert saved is not None
    before = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    kill_a_rank(process, 1)
    while process.poll() is None:  # until one of the next ranks is there, which has not begun to train
        new = {child.pid for child in psutil.Process(process.pid).children(recursive=True)} - before
        if any("RANK" in psutil.Process(pid).environ() for pid in new if psutil.pid_exists(pid)):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text = training.finish(process)
    assert process.returncode == 75, text
    newest = latest_checkpoint(output / "checkpoints")
    assert newest is not None
    assert read_info(newest).step >= read_info(saved).step


def test_a_rank_leaves_when_its_launcher_dies_before_it_has_begun(tmp_path: Path, data: Path) -> None:
    """Else it waits for the others for ten minutes, and holds what its launcher's reader waits for."""
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import os, subprocess, sys, time\n"
        f"rank = subprocess.Popen([sys.executable, {str(TRAIN)!r}, '--config', {str(recipe)!r}],\n"
        "    env=dict(os.environ, RANK='0', LOCAL_RANK='0', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',\n"
        "    MASTER_PORT='1'))\n"
        "while 'libtorch' not in open(f'/proc/{rank.pid}/maps').read(): time.sleep(0.01)\n"
        "os._exit(0)"
    )
    start = subprocess.run([sys.executable, str(launcher)], stdout=subprocess.PIPE, timeout=60)
    assert start.returncode == 0


def test_damaged_data_are_told_from_a_bad_configuration(tmp_path: Path, data: Path) -> None:
    rotten = rotten_copy(data, tmp_path / "data")
    recipe = training.write_recipe(tmp_path / "recipe.yaml", rotten, tmp_path / "run")
    process = start_restarting(recipe, 0)
    text = training.finish(process)
    assert process.returncode == 3, text
    assert "samples could not be read" in text
    manifest = next((rotten / "manifest").glob("*.parquet"))
    manifest.write_bytes(manifest.read_bytes()[: os.path.getsize(manifest) // 2])
    (rotten / "index.arrow").unlink()
    with pytest.raises(DataError, match="unreadable manifest"):
        plan_run(load_config(recipe, []))
