"""Runs with metric heads: gradient caching, memory and betas of classes through checkpoints, other numbers of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.checkpoint import read_info
from tests.datasets import make_dataset
from tests.integration import training

# a triplet whose loss is zero but for rounding is one of some ten thousand that the mean counts, or is not
TOLERANCE = {"triplet": 2e-4, "margin_based": 1e-5}
HEADS = {
    "triplet": {"kind": "triplet", "margin": 0.5, "memory": {"size": 100, "start_step": 3}},
    "margin_based": {"kind": "margin_based", "beta_per_class": True},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=160, num_identities=5, crop_px=training.CROP_PX)


@pytest.mark.parametrize("kind", HEADS)
def test_resumed_on_two_ranks(tmp_path: Path, data: Path, kind: str) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output, epochs=4)
    tree = yaml.safe_load(recipe.read_text())
    tree["checkpoint"]["every_epochs"] = 2
    recipe.write_text(yaml.safe_dump(tree | {"head": HEADS[kind]}))
    training.run(recipe, 1)
    straight = training.losses(output)
    assert max(straight) == 10
    assert all(0 < loss < 3 for loss in straight.values())
    # the second half is done again, on two ranks
    middle = next(path for path in (output / "checkpoints").glob("step-*") if read_info(path).step == 5)
    (output / "checkpoints" / "latest").write_text(middle.name)
    text = training.run(recipe, 2)
    assert "1 → 2 ranks" in text
    resumed = training.losses(output)
    assert resumed.keys() == straight.keys()
    assert resumed != straight
    for step, loss in resumed.items():
        assert loss == pytest.approx(straight[step], rel=TOLERANCE[kind])
