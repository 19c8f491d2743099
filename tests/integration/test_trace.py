"""A profile section leaves a trace and a table a rank."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from pipeline.config.load import load_config
from pipeline.engine.run import plan_run
from pipeline.engine.trainer import Trainer
from tests.datasets import make_dataset
from tests.integration import training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=100, num_identities=5, crop_px=training.CROP_PX)


def run(recipe: Path, *overrides: str) -> None:
    Trainer(plan_run(load_config(recipe, overrides)), torch.device("cpu")).run()


def test_the_steps_asked_for_are_traced(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", epochs=3)
    (tmp_path / "run").mkdir()
    run(recipe, "profile.start_step=2", "profile.num_steps=2")
    folder = tmp_path / "run" / "profile"
    assert {path.name for path in folder.iterdir()} == {"steps-2-3-rank-0.json.gz", "steps-2-3-rank-0.txt"}
    assert "traced steps 2 to 3" in capfd.readouterr().err
    with gzip.open(folder / "steps-2-3-rank-0.json.gz") as file:
        events = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sum(name == "Optimizer.step#SGD.step" for name in events) == 2 * 2  # backbone and head, in two steps
    assert "aten::convolution" in (folder / "steps-2-3-rank-0.txt").read_text()
    run(recipe, "profile.start_step=2", "training.epochs=4")
    assert "nothing to trace: step 2" in capfd.readouterr().err


def test_a_run_that_ends_first_leaves_what_it_has(tmp_path: Path, data: Path) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", epochs=2)
    (tmp_path / "run").mkdir()
    run(recipe, "profile.start_step=3", "profile.num_steps=9")
    assert (tmp_path / "run" / "profile" / "steps-3-3-rank-0.txt").is_file()
