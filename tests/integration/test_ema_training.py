"""The moving average of weights in runs: resumed bit for bit, alike on any number of ranks, and what is evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import load_backbone
from pipeline.config.errors import UserError
from tests.datasets import make_dataset
from tests.integration import in_ranks, training

EMA = ["ema.decay=0.9", "ema.every_steps=2", "training.epochs=3", "optim.backbone.lr=1e-3"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=192, num_identities=7, crop_px=training.CROP_PX)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    recipe = training.write_recipe(directory / "recipe.yaml", data, directory / "run")
    in_ranks.train(recipe, 2, EMA)
    return directory / "run"


def test_a_resumed_average_is_bit_equal(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    in_ranks.train(recipe, 2, EMA, stop_at=3)
    in_ranks.train(recipe, 2, EMA)
    assert in_ranks.differences(tmp_path / "run", undisturbed) == []
    assert training.losses(tmp_path / "run") == training.losses(undisturbed)


def test_another_number_of_ranks_averages_the_same(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    in_ranks.train(recipe, 1, EMA)
    ours, theirs = in_ranks.saved(tmp_path / "run"), in_ranks.saved(undisturbed)
    averages = [name for name in ours if name.startswith("ema/")]
    assert {name.removeprefix("ema/") for name in averages} == {
        name.removeprefix("backbone/") for name in ours if name.startswith("backbone/")
    }
    for name in averages:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_training_does_not_feel_the_average(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    in_ranks.train(recipe, 2, [*EMA[2:]])
    assert training.losses(tmp_path / "run") == training.losses(undisturbed)
    with pytest.raises(UserError, match="holds no average of the weights"):
        load_backbone(tmp_path / "run", CPU, "ema")
    assert load_backbone(tmp_path / "run", CPU).weights == "raw"


def test_the_average_is_loaded_unless_asked_otherwise(undisturbed: Path) -> None:
    default, raw = load_backbone(undisturbed, CPU), load_backbone(undisturbed, CPU, "raw")
    assert (default.weights, raw.weights) == ("ema", "raw")
    tensors = in_ranks.saved(undisturbed)
    for prefix, loaded in (("ema/", default), ("backbone/", raw)):
        assert all(torch.equal(t, tensors[prefix + name]) for name, t in loaded.module.state_dict().items())
    name = "backbone.neck.embed.weight"
    assert not torch.equal(tensors[f"ema/{name}"], tensors[f"backbone/{name}"])


def test_an_average_can_begin_in_the_middle_of_a_run(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    in_ranks.train(recipe, 1, EMA[2:], stop_at=4)
    before = in_ranks.saved(output)
    shutil.copytree(output, tmp_path / "copy")
    # an average of so many steps has hardly left the weights that it began at
    in_ranks.train(recipe, 1, ["ema.decay=0.999999", "ema.warmup=false", *EMA[2:]])
    after = in_ranks.saved(output)
    name = "backbone.neck.embed.weight"
    torch.testing.assert_close(after[f"ema/{name}"], before[f"backbone/{name}"], rtol=1e-3, atol=1e-5)
    assert not torch.equal(after[f"backbone/{name}"], before[f"backbone/{name}"])
