"""Kill a run, repeat the command: the curve has no seam, on the same number of ranks or another."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import latest_checkpoint, load_backbone, read_info, read_tensors
from tests.datasets import make_dataset
from tests.integration import training

NUM_SAMPLES = 400
NUM_STEPS = 38  # six epochs of 400 in batches of 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(
        tmp_path_factory.mktemp("data"), num_samples=NUM_SAMPLES, num_identities=13, crop_px=training.CROP_PX
    )


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
    [(1, 9, signal.SIGKILL), (2, 4, signal.SIGKILL), (2, 17, signal.SIGTERM), (4, 11, signal.SIGKILL)],
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
    _assert_equal_checkpoints(output, undisturbed[ranks])


def test_killed_run_goes_on_bit_for_bit_with_adamw(tmp_path: Path, data: Path) -> None:
    recipes = [
        training.write_recipe(tmp_path / f"{name}.yaml", data, tmp_path / name, training.ADAMW, epochs=3)
        for name in ("undisturbed", "killed")
    ]
    training.run(recipes[0], 2)
    training.kill_at_step(recipes[1], 2, tmp_path / "killed", 6, signal.SIGKILL)
    assert "resumed at step" in training.run(recipes[1], 2)
    assert training.losses(tmp_path / "killed") == training.losses(tmp_path / "undisturbed")
    _assert_equal_checkpoints(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 4), (1, 3)])
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
