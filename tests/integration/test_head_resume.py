"""Heads with a state of their own in real runs: killed and resumed, on the same number of ranks and on another."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import latest_checkpoint, read_tensors
from tests.datasets import make_dataset
from tests.integration import training

SAMPLED_ADAMW = ["head.sample_rate=0.5", "optim.head.kind=adamw", "optim.head.lr=1e-3"]
# the global batch comes in four micro-batches, so this goes through gradient caching
ADAFACE_SUBCENTRES = ["head.margin.kind=adaface", "head.margin.scale=8", "head.num_subcentres=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=320, num_identities=13, crop_px=training.CROP_PX)


@pytest.mark.parametrize("overrides", [SAMPLED_ADAMW, ADAFACE_SUBCENTRES], ids=["sampled-adamw", "adaface-subcentres"])
def test_killed_run_goes_on_bit_for_bit_and_on_another_number_of_ranks(
    tmp_path: Path, data: Path, overrides: list[str]
) -> None:
    overrides = [*overrides, "training.epochs=3"]
    undisturbed, killed, moved = (tmp_path / name for name in ("undisturbed", "killed", "moved"))
    recipe = training.write_recipe(tmp_path / "undisturbed.yaml", data, undisturbed)
    training.run(recipe, 2, overrides)
    recipe = training.write_recipe(tmp_path / "killed.yaml", data, killed)
    process = training.start(recipe, 2, overrides)
    training.wait_for_step(process, killed, 5)
    process.send_signal(signal.SIGTERM)
    training.finish(process)
    assert 5 <= max(training.losses(killed)) < 15
    shutil.copytree(killed, moved)
    assert "resumed at step" in training.run(recipe, 2, overrides)
    expected = training.losses(undisturbed)
    assert training.losses(killed) == expected
    ours, theirs = (tensors_of(output) for output in (killed, undisturbed))
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    assert {"head_optimizer/class_centres/row_steps", "head/margin.norm_mean"} & ours.keys()
    recipe = training.write_recipe(tmp_path / "moved.yaml", data, moved)
    assert "2 → 1 ranks" in training.run(recipe, 1, overrides)
    found = training.losses(moved)
    assert found.keys() == expected.keys()
    assert all(found[step] == pytest.approx(expected[step], rel=1e-3) for step in expected)


def tensors_of(output: Path) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(output / "checkpoints")
    assert path is not None
    return read_tensors(path)
