"""A rank that hangs ends the run, and the run says which one it was."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from statistics import mode

import psutil
import pytest

from tests.datasets import make_dataset
from tests.integration import training

pytestmark = pytest.mark.timeout(200)
FAULTY = str(training.REPOSITORY / "tests" / "integration" / "faulty_train.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=400, num_identities=13, crop_px=training.CROP_PX)


def start_faulty(recipe: Path, ranks: int, fault: str, *overrides: str) -> subprocess.Popen[str]:
    """Start a run with a fault of `faulty_train`."""
    words = training.command(recipe, ranks, overrides)
    script = next(number for number, word in enumerate(words) if word.endswith("train.py"))
    return training.start_command([*words[:script], FAULTY, fault, *words[script + 1 :]])


def rank_process(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of a rank."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def test_a_rank_that_sleeps_is_named_and_all_stacks_are_written(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    text = training.finish(start_faulty(recipe, 2, "sleep_in_forward:1:4", "watchdog.timeout_s=6"))
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert "step 4 took longer than 6 s: held up by rank 1 (process " in line
    assert "stage forward" in line
    assert "sleep_in_forward" in (output / "stacks-rank-1.txt").read_text()
    assert "/pipeline/dist.py" in (output / "stacks-rank-0.txt").read_text()


def test_a_rank_that_is_stopped_is_named(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output, epochs=1000)
    launcher = training.start(recipe, 2, ["watchdog.timeout_s=6"])
    training.wait_for_step(launcher, output, 3)
    other, frozen = rank_process(launcher, 0), rank_process(launcher, 1)
    frozen.send_signal(signal.SIGSTOP)
    psutil.wait_procs([other], timeout=60)
    frozen.kill()  # the launcher would try SIGTERM for half a minute
    text = training.finish(launcher)
    assert f"no answer from rank 1 (process {frozen.pid} on " in text
    assert "stopped by a signal" in text
    assert (output / "stacks-rank-0.txt").is_file()
    assert launcher.returncode != 0


def test_a_reading_thread_that_is_stuck_is_named(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    text = training.finish(start_faulty(recipe, 2, "stuck_reader:1:3", "watchdog.timeout_s=6"))
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert "held up by rank 1 (process " in line
    assert "stage data" in line
    stacks = (output / "stacks-rank-1.txt").read_text()
    assert "is loader-read_0" in stacks
    assert "stuck_reader" in stacks


@pytest.mark.slow
def test_a_reading_thread_that_dies_ends_the_run(tmp_path: Path, data: Path) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    process = start_faulty(recipe, 2, "dying_reader:1:3")
    text = training.finish(process)
    assert process.returncode != 0
    assert "MemoryError: no room for a photo" in text
    assert "in a loader thread of rank 1, for the step at stream position " in text


@pytest.mark.slow
def test_a_library_that_never_gives_the_interpreter_back(tmp_path: Path, data: Path) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    process = start_faulty(recipe, 1, "hold_the_interpreter:0:3", "watchdog.timeout_s=3")
    text = training.finish(process)
    assert process.returncode == 1
    assert "Timeout (0:00:" in text
    assert "hold_the_interpreter" in text


def test_a_slow_rank_is_named_with_its_stage(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output, epochs=1)
    process = start_faulty(recipe, 2, "be_slow:1:2", "watchdog.slow_rank_after_s=1", "watchdog.slow_rank_factor=2")
    text = training.finish(process)
    assert process.returncode == 0, text
    # a busy machine may make the other one slow for a moment, too
    (line,) = (line for line in text.splitlines() if line.startswith("slow rank 1 ("))
    assert "most of it in forward" in line
    late = [step for step in training.losses(output) if step > 2]
    assert mode(training.metric(output, "slowest_rank")[step] for step in late) == 1
    names = ("data", "forward", "head", "backward", "communication", "optimizer", "other")
    stages = [training.metric(output, f"time/{name}_s") for name in names]
    whole = training.metric(output, "step_s")
    assert all(sum(stage[step] for stage in stages) == pytest.approx(whole[step]) for step in late)
