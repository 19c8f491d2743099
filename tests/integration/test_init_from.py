"""Runs that begin from another run, as a user starts them: what is taken over, and that a resume comes first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.datasets import make_dataset
from tests.integration import in_ranks, training

ONE_EPOCH = ["training.epochs=1", "ema.decay=0.5"]
# what begins is what one step leaves, but for this
HARDLY = ["optim.backbone.lr=1e-12", "optim.head.lr=1e-12"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=192, num_identities=7, crop_px=training.CROP_PX)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    directory = tmp_path_factory.mktemp("source")
    recipe = training.write_recipe(directory / "recipe.yaml", data, directory / "run")
    in_ranks.train(recipe, 2, [*ONE_EPOCH, "optim.backbone.lr=1e-2", "optim.head.lr=1e-2"])
    return directory / "run"


def test_everything_is_taken_on_any_number_of_ranks(tmp_path: Path, data: Path, source: Path) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    in_ranks.train(recipe, 3, [*ONE_EPOCH, *HARDLY, f"init_from.path={source}", "init_from.parts=all"], stop_at=1)
    ours, theirs = in_ranks.saved(tmp_path / "run"), in_ranks.saved(source)
    torch.testing.assert_close(ours["head/class_centres"], theirs["head/class_centres"])
    for name in ("neck.embed.weight", "stem.0.weight"):
        for prefix in ("backbone/", "ema/"):
            torch.testing.assert_close(ours[f"{prefix}backbone.{name}"], theirs[f"ema/backbone.{name}"])
        assert not torch.equal(theirs[f"backbone/backbone.{name}"], theirs[f"ema/backbone.{name}"])


def test_a_resume_comes_first_and_needs_no_source(tmp_path: Path, source: Path) -> None:
    """Other people, another head; the source is gone by the time the run is restarted with the same command."""
    others = make_dataset(tmp_path / "others", num_samples=128, num_identities=5, crop_px=training.CROP_PX, seed=1)
    shutil.copytree(source, tmp_path / "source")
    recipe = training.write_recipe(tmp_path / "recipe.yaml", others, tmp_path / "run")
    command = [*ONE_EPOCH, "head.kind=triplet", f"init_from.path={tmp_path / 'source'}"]
    text = training.run(recipe, 1, command)
    assert f"began from {tmp_path / 'source' / 'checkpoints'}" in text
    assert "the average of its weights: " in text
    assert "tensors of the backbone taken" in text
    shutil.rmtree(tmp_path / "source")
    text = training.run(recipe, 1, [*command, "training.epochs=2"])
    assert "resumed at step 2" in text
    assert "began from" not in text
