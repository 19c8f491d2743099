"""Freezing schedules in runs: resumed bit for bit before, at and after a border, and alike on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.datasets import make_dataset
from tests.integration import in_ranks, training

# three steps an epoch: all but the embedding layers rests for three steps, the first layers for six
THAWING = [
    "training.epochs=3",
    "optim.backbone.lr=1e-3",
    "thaw.stages=[[stem.*, 'blocks.[0-3].*'], 'blocks.[4-7].*']",
    "thaw.every_epochs=1",
    "freeze=[{pattern: 'neck.norm.*'}]",
    "ema.decay=0.9",
]
NUM_STEPS = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=192, num_identities=7, crop_px=training.CROP_PX)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[int, Path]:
    outputs = {}
    for ranks in (1, 3):
        directory = tmp_path_factory.mktemp(f"ranks{ranks}")
        recipe = training.write_recipe(directory / "recipe.yaml", data, directory / "run")
        in_ranks.train(recipe, ranks, THAWING)
        outputs[ranks] = directory / "run"
    return outputs


@pytest.mark.parametrize("stop_at", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7))])
def test_a_resumed_run_is_bit_equal(tmp_path: Path, data: Path, undisturbed: dict[int, Path], stop_at: int) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    in_ranks.train(recipe, 3, THAWING, stop_at)
    assert max(training.losses(tmp_path / "run")) == stop_at
    in_ranks.train(recipe, 3, THAWING)
    assert training.losses(tmp_path / "run") == training.losses(undisturbed[3])
    assert in_ranks.differences(tmp_path / "run", undisturbed[3]) == []


def test_more_ranks_train_the_same(tmp_path: Path, data: Path, undisturbed: dict[int, Path]) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    in_ranks.train(recipe, 2, THAWING)
    one = training.losses(undisturbed[1])
    assert sorted(one) == list(range(1, NUM_STEPS + 1))
    for output in (tmp_path / "run", undisturbed[3]):
        found = training.losses(output)
        assert all(found[step] == pytest.approx(one[step], rel=1e-4) for step in one)
        assert training.metric(output, "trained_parameters") == training.metric(undisturbed[1], "trained_parameters")


def test_stages_move_once_they_are_let_go_and_not_before(
    tmp_path: Path, data: Path, undisturbed: dict[int, Path]
) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    saved = []
    for stop_at in (1, 3, 6):
        in_ranks.train(recipe, 2, THAWING, stop_at)
        saved.append(in_ranks.saved(tmp_path / "run"))
    saved.append(in_ranks.saved(undisturbed[3]))

    def moved(earlier: int, later: int) -> set[str]:
        names = (name for name in saved[0] if name.startswith(("backbone/", "backbone_optimizer/")))
        changed = {name for name in names if not torch.equal(saved[earlier][name], saved[later][name])}
        parts = (name.partition("/")[2].removeprefix("backbone.") for name in changed)
        return {part_of(name) for name in parts}

    def part_of(name: str) -> str:
        first, second = name.split(".")[:2]
        if first == "neck":
            return f"neck.{second}"
        return "blocks.early" if first == "blocks" and int(second) < 4 else first

    assert moved(0, 1) == {"neck.embed", "neck.embed_norm"}
    assert moved(1, 2) == {"neck.embed", "neck.embed_norm", "blocks"}
    assert moved(2, 3) == {"neck.embed", "neck.embed_norm", "blocks", "blocks.early", "stem"}
    figures = training.metric(undisturbed[3], "trained_parameters")
    assert len(set(figures.values())) == 3
    assert list(figures.values()) == sorted(figures.values())


def test_the_networks_own_stages_thaw_one_by_one_and_a_resumed_run_is_bit_equal(tmp_path: Path, data: Path) -> None:
    """Six stages, half an epoch apart: the last is trained from the beginning, the first in the last step alone."""
    own = ["training.epochs=3", "optim.backbone.lr=1e-3", "thaw.every_epochs=0.5"]
    first = training.write_recipe(tmp_path / "first.yaml", data, tmp_path / "first")
    in_ranks.train(first, 3, own)
    named = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())["thaw"]["stages"]
    assert named[0] == ["stem.*"]
    assert [stage[0] for stage in named[1:]] == [f"blocks.{number}.*" for number in (0, 2, 4, 6)]
    trained = training.metric(tmp_path / "first", "trained_parameters")
    assert len(set(trained.values())) == 6
    assert list(trained.values()) == sorted(trained.values())

    second = training.write_recipe(tmp_path / "second.yaml", data, tmp_path / "second")
    in_ranks.train(second, 3, own, stop_at=4)
    in_ranks.train(second, 3, own)
    assert training.losses(tmp_path / "second") == training.losses(tmp_path / "first")
    assert in_ranks.differences(tmp_path / "second", tmp_path / "first") == []


def test_a_new_head_on_a_backbone_that_rests(tmp_path: Path, data: Path) -> None:
    """Gradient caching and two ranks, with nothing behind the embeddings to train at first."""
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    overrides = ["training.epochs=1", "freeze=[{pattern: '*', until_epoch: 0.6}]", "head.margin.kind=adaface"]
    in_ranks.train(recipe, 2, overrides, stop_at=2)
    before = in_ranks.saved(tmp_path / "run")
    in_ranks.train(recipe, 2, overrides)
    norms = training.metric(tmp_path / "run", "backbone_grad_norm")
    assert norms[1] == norms[2] == 0 < norms[3]
    after = in_ranks.saved(tmp_path / "run")
    assert not torch.equal(before["backbone/backbone.stem.0.weight"], after["backbone/backbone.stem.0.weight"])
