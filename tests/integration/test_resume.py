"""Kill a run, repeat the command: the curve has no seam, on the same number of ranks or another."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import latest_checkpoint, load_backbone, read_info, read_tensors
from pipeline.config.errors import InUseError
from pipeline.data.manifest import open_dataset
from pipeline.lock import exclusive
from tests.datasets import make_dataset
from tests.integration import training

NUM_SAMPLES = 400
NUM_STEPS = 38  # six epochs of 400 in batches of 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the photos is damaged, so that a masked slot and its count are part of every comparison."""
    root = make_dataset(
        tmp_path_factory.mktemp("data"), num_samples=NUM_SAMPLES, num_identities=13, crop_px=training.CROP_PX
    )
    split = open_dataset(root).split("train")
    with open(split.shards[split.shard[5]], "r+b") as tar:
        tar.seek(int(split.jpg_offset[5]) + 200)
        tar.write(b"damage")
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[int, Path]:
    """Finished runs by number of ranks."""
    outputs = {}
    for ranks in (1, 2, 4):
        directory = tmp_path_factory.mktemp(f"ranks{ranks}")
        recipe = training.write_recipe(directory / "recipe.yaml", data, directory / "run")
        training.run(recipe, ranks)
        outputs[ranks] = directory / "run"
        assert sorted(training.losses(outputs[ranks])) == list(range(1, NUM_STEPS + 1))
    return outputs


@pytest.mark.parametrize(
    ("ranks", "step", "signum"),
    [
        (1, 9, signal.SIGKILL),
        (2, 4, signal.SIGKILL),
        (2, 17, signal.SIGTERM),
        pytest.param(4, 11, signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_killed_run_goes_on_bit_for_bit(
    tmp_path: Path, data: Path, undisturbed: dict[int, Path], ranks: int, step: int, signum: int
) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    training.kill_at_step(recipe, ranks, output, step, signum)
    assert max(training.losses(output)) < NUM_STEPS, "the run ended before it was killed"
    text = training.run(recipe, ranks)
    assert "resumed at step" in text
    assert "nothing lost, nothing repeated" in text
    assert training.losses(output) == training.losses(undisturbed[ranks])
    assert training.metric(output, "bad_samples") == training.metric(undisturbed[ranks], "bad_samples")
    assert len((output / "bad_samples.jsonl").read_text().splitlines()) == 6, "once an epoch"
    _assert_equal_checkpoints(output, undisturbed[ranks])


def test_a_killed_launcher_takes_its_ranks_along(tmp_path: Path, data: Path, undisturbed: dict[int, Path]) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    training.kill_at_step(recipe, 2, output, 3, signal.SIGKILL, only_launcher=True)
    assert "resumed at step" in training.run(recipe, 2)  # waits until the ranks of the first have left
    assert training.losses(output) == training.losses(undisturbed[2])
    _assert_equal_checkpoints(output, undisturbed[2])


def test_sigterm_saves_and_the_supervisor_says_so(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    overrides = ["checkpoint.every_epochs=1000"]
    process = training.start(recipe, 2, overrides, supervised=True)
    training.wait_for_step(process, output, 5)
    process.send_signal(signal.SIGTERM)
    text = training.finish(process)
    assert process.returncode == 75, text
    newest = latest_checkpoint(output / "checkpoints")
    assert newest is not None, text
    assert 5 <= read_info(newest).step < NUM_STEPS


def test_two_runs_do_not_share_a_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = tmp_path / "run"
    output.mkdir()
    with open(output / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 4711 on node-3")
        file.flush()
        with pytest.raises(InUseError, match=r"another run writes here \(process 4711 on node-3\)"):
            exclusive(output, wait_s=0.1).__enter__()
        assert [record.message for record in caplog.records] == [
            f"{output}: process 4711 on node-3 writes here; waiting 0.1 s for it to end"
        ]
        fcntl.flock(file, fcntl.LOCK_UN)
        with exclusive(output):
            assert (output / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_person_is_told_soon_that_the_directory_is_in_use(tmp_path: Path, data: Path) -> None:
    """Without a terminal this would be tried for two minutes; the exit code has it tried again, either way."""
    output = tmp_path / "run"
    output.mkdir()
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    terminal, end = os.openpty()
    with open(output / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = subprocess.run(training.command(recipe, ranks=1), stderr=end, timeout=100, check=False)
    os.close(end)
    text = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert done.returncode == 1
    assert "writes here; waiting 5 s for it to end" in text
    assert f"error: {output}: another run writes here (a process); expected one at a time; wait for it" in text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_instant_again_and_again(
    tmp_path: Path, data: Path, undisturbed: dict[int, Path], seed: int
) -> None:
    draw = random.Random(seed)
    ranks = draw.choice([1, 2, 4])
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    for step in sorted(draw.sample(range(1, NUM_STEPS - 2), 3)):
        delay_s = draw.uniform(0, 0.1)
        training.kill_at_step(recipe, ranks, output, step, signal.SIGKILL, delay_s, saved="")
    training.run(recipe, ranks)
    assert training.losses(output) == training.losses(undisturbed[ranks])
    _assert_equal_checkpoints(output, undisturbed[ranks])


def test_killed_run_goes_on_bit_for_bit_with_adamw(tmp_path: Path, data: Path) -> None:
    recipes = [
        training.write_recipe(tmp_path / f"{name}.yaml", data, tmp_path / name, training.ADAMW, epochs=3)
        for name in ("undisturbed", "killed")
    ]
    training.run(recipes[0], 2)
    training.kill_at_step(recipes[1], 2, tmp_path / "killed", 6, signal.SIGKILL)
    assert max(training.losses(tmp_path / "killed")) < max(training.losses(tmp_path / "undisturbed"))
    assert "resumed at step" in training.run(recipes[1], 2)
    assert training.losses(tmp_path / "killed") == training.losses(tmp_path / "undisturbed")
    _assert_equal_checkpoints(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_another_number_of_ranks_goes_on(
    tmp_path: Path, data: Path, undisturbed: dict[int, Path], before: int, after: int
) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed[before], output)
    first = min((output / "checkpoints").glob("step-*"))
    (output / "checkpoints" / "latest").write_text(first.name)
    resumed_at = read_info(first).step
    assert NUM_STEPS - resumed_at >= 20
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    text = training.run(recipe, after)
    assert f"{before} → {after} ranks" in text
    ours, theirs = training.losses(output), training.losses(undisturbed[before])
    assert sorted(ours) == sorted(theirs)
    for step in range(resumed_at + 1, resumed_at + 21):
        assert ours[step] == pytest.approx(theirs[step], rel=1e-4), f"step {step}"


def test_a_finished_run_has_nothing_left_to_do(undisturbed: dict[int, Path], tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed[1], output)
    before = training.losses(output)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    training.run(recipe, 1)
    assert training.losses(output) == before


def test_the_backbone_loads_for_evaluation_from_any_number_of_ranks(undisturbed: dict[int, Path]) -> None:
    images = torch.randint(0, 256, (4, 3, training.CROP_PX, training.CROP_PX), dtype=torch.uint8)
    embeddings = []
    for output in undisturbed.values():
        loaded = load_backbone(output, torch.device("cpu"))
        assert (loaded.step, loaded.crop_px, loaded.embedding_dim) == (NUM_STEPS, training.CROP_PX, 64)
        with torch.no_grad():
            embeddings.append(loaded.module(images))
    torch.testing.assert_close(embeddings[0], embeddings[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(embeddings[0], embeddings[2], rtol=1e-3, atol=1e-3)


def _assert_equal_checkpoints(one: Path, other: Path) -> None:
    tensors = []
    for output in (one, other):
        path = latest_checkpoint(output / "checkpoints")
        assert path is not None
        tensors.append(read_tensors(path))
    assert tensors[0].keys() == tensors[1].keys()
    assert any(name.startswith("head_optimizer/") for name in tensors[0])
    different = [name for name, value in tensors[0].items() if not torch.equal(value, tensors[1][name])]
    assert different == []
