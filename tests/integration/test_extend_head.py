"""Train, add two people, go on: as a user does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from pipeline.checkpoint import find_checkpoint, read_info, read_tensors
from pipeline.data.manifest import open_dataset
from tests.datasets import make_dataset
from tests.integration import training

OLD = ["bea", "dan", "eve", "fay"]
NEW = ["ann", "bea", "cem", "dan", "fay"]
DATA = {"num_samples": 40, "crop_px": training.CROP_PX}
BATCHES = ["training.global_batch=16", "training.local_batch=8", "training.epochs=2"]


def extend(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(training.REPOSITORY / "launch" / "extend_head.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_training_goes_on_with_new_people(tmp_path: Path) -> None:
    old_data = make_dataset(tmp_path / "old", num_identities=4, names=OLD, **DATA)
    new_data = make_dataset(tmp_path / "new", num_identities=5, names=NEW, seed=1, **DATA)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", old_data, tmp_path / "run")
    training.run(recipe, 1, BATCHES)
    arguments = ("--checkpoint", tmp_path / "run", "--data", new_data, "--output", tmp_path / "extended")
    result = extend(*arguments)
    assert result.returncode == 0, result.stderr
    assert "3 people kept, 2 new, 1 dropped" in result.stdout
    before, after = (read_tensors(find_checkpoint(tmp_path / name)) for name in ("run", "extended"))
    for name in ("head/class_centres", "head_optimizer/class_centres/momentum_buffer"):
        rows = dict(zip(OLD, before[name], strict=True))
        for identity, row in zip(open_dataset(new_data).split("train").identities(), after[name], strict=True):
            if identity in rows:
                assert torch.equal(row, rows[identity]), (name, identity)
            else:
                assert bool(row.any()) == (name == "head/class_centres"), (name, identity)
    info = read_info(find_checkpoint(tmp_path / "extended"))
    assert (info.step, info.samples, info.num_classes) == (0, 0, 5)

    text = training.run(tmp_path / "extended" / "config.yaml", 2)
    assert "resumed at step 0 (0 samples), 1 → 2 ranks" in text
    assert sorted(training.losses(tmp_path / "extended")) == [1, 2, 3, 4, 5]
    trained = read_tensors(find_checkpoint(tmp_path / "extended"))["head/class_centres"]
    assert 0 < (trained - after["head/class_centres"]).abs().max() < 1e-2

    again = extend(*arguments)
    assert again.returncode == 2
    assert "a run stands there already" in again.stderr
    (old_data / "dataset.json").rename(old_data / "moved.json")
    gone = extend("--checkpoint", tmp_path / "run", "--data", new_data, "--output", tmp_path / "other")
    assert gone.returncode == 2
    assert gone.stderr.count("\n") == 1
    assert "name the data set of that run with --old-data" in gone.stderr
