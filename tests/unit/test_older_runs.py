"""Checkpoints from before a configuration key existed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import checkpoint
from pipeline.config.errors import UserError
from pipeline.config.load import load_config
from pipeline.engine.run import plan_run
from pipeline.engine.state import prepare_start
from tests.datasets import make_dataset
from tests.integration import training


def test_they_have_the_defaults_of_keys_that_they_lack(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, num_samples=64, num_identities=4, crop_px=training.CROP_PX)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    saved = prepare_start(plan_run(load_config(recipe))).save({})
    description = saved / checkpoint.DESCRIPTION
    info = json.loads(description.read_text())
    for key in ("se", "neck", "alignment"):
        del info["config"]["backbone"][key]
    del info["config"]["data"]["order"]
    description.write_text(json.dumps(info))
    resume = plan_run(load_config(recipe)).resume
    assert resume is not None
    assert resume.changes == []
    with pytest.raises(UserError, match=r"backbone\.se: True, but .* was trained with False"):
        plan_run(load_config(recipe, ["backbone.se=true"]))
