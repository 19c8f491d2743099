"""Runs on batches of P people × K photos: resumed elsewhere, and with other P and K in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.checkpoint import read_info
from tests.datasets import make_dataset
from tests.integration import training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=190, num_identities=11, crop_px=training.CROP_PX)


def write_recipe(path: Path, data: Path, output: Path) -> Path:
    recipe = training.write_recipe(path, data, output, epochs=4, global_batch=36, local_batch=6)
    tree = yaml.safe_load(recipe.read_text())
    tree["data"]["order"] = {"kind": "identity_balanced", "num_identities": 5, "photos_per_identity": 6}
    tree["head"] = {"kind": "triplet", "margin": 0.5}
    tree["checkpoint"]["every_epochs"] = 0.25
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def test_resumed_on_two_ranks(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output)
    text = training.run(recipe, 1)
    # 33 groups of 6 photos (17 or 18 photos a person), 5 a batch
    assert "batches of 5 people × 6 photos + 6 others, 6 an epoch with up to 8 top-ups" in text
    straight, top_ups = training.losses(output), training.metric(output, "top_ups")
    assert max(straight) == 24
    assert 4 <= sum(top_ups.values()) <= 32
    epochs = training.metric(output, "epoch")
    assert epochs[6] == 1.0
    assert epochs[24] == 4.0
    # 5 people with 6 · 5 ordered pairs each, and what pairs the others happen to make
    assert min(training.metric(output, "num_positive_pairs").values()) >= 150
    middle = next(path for path in (output / "checkpoints").glob("step-*") if read_info(path).step == 9)
    (output / "checkpoints" / "latest").write_text(middle.name)
    assert "1 → 2 ranks" in training.run(recipe, 2)
    resumed = training.losses(output)
    assert resumed.keys() == straight.keys()
    assert training.metric(output, "top_ups") == top_ups
    for step, loss in resumed.items():
        assert loss == pytest.approx(straight[step], rel=1e-4)


def test_other_people_and_photos_in_the_middle_of_an_epoch(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output)
    training.run(recipe, 1, ["training.epochs=0.5"])
    assert max(training.losses(output)) == 3
    changed = ["data.order.num_identities=8", "data.order.photos_per_identity=3", "training.global_batch=24"]
    text = training.run(recipe, 1, changed)
    assert "resumed at step 3 (108 samples)" in text
    assert "changed data.order.num_identities: 5 → 8" in text
    epochs = training.metric(output, "epoch")
    assert epochs[3] == 0.5
    assert epochs[max(epochs)] == 4.0
    info = read_info(max((output / "checkpoints").glob("step-*")))
    assert [part.start for part in info.order_parts] == [0, 108]
    # the third run has both changes in its past, and must find the same stream
    again = training.losses(output)
    middle = next(path for path in (output / "checkpoints").glob("step-*") if 3 < read_info(path).step < max(again))
    (output / "checkpoints" / "latest").write_text(middle.name)
    training.run(recipe, 1, changed)
    assert training.losses(output) == again


def test_another_kind_of_order_is_another_run(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output)
    training.run(recipe, 1, ["training.epochs=0.5"])
    tree = yaml.safe_load(recipe.read_text())
    tree["data"]["order"] = {"kind": "streaming"}
    recipe.write_text(yaml.safe_dump(tree))
    process = training.start(recipe, 1)
    text = training.finish(process)
    assert process.returncode == 2
    assert "data.order.kind: 'streaming', but" in text
    assert "Traceback" not in text
