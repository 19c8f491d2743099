"""What goes wrong before and during training: one line, exit code 2, no traceback, and no rank that hangs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import latest_checkpoint
from pipeline.config.errors import UserError
from pipeline.config.load import load_config
from pipeline.engine.run import plan_run
from tests.datasets import make_dataset, rotten_copy
from tests.integration import training

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=100, num_identities=5, crop_px=training.CROP_PX)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    recipe = training.write_recipe(directory / "recipe.yaml", data, directory / "run", epochs=2)
    training.run(recipe, 1)
    return directory / "run"


def refusal(recipe: Path, *overrides: str) -> str:
    """What the check that comes before any process group says of a mistake."""
    with pytest.raises(UserError) as caught:
        plan_run(load_config(recipe, overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_that_are_found_before_the_start(tmp_path: Path, data: Path) -> None:
    odd_crops = make_dataset(tmp_path / "odd", num_samples=70, num_identities=5, crop_px=40)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    assert "no such directory" in refusal(recipe, "data.path=nowhere")
    assert "one of train" in refusal(recipe, "data.split=test")
    assert "fewer samples than one global batch" in refusal(recipe, "training.global_batch=400")
    assert "multiple of 16" in refusal(recipe, f"data.path={odd_crops}")
    assert "did you mean 'resnet18'" in refusal(recipe, "backbone.kind=torchvision", "backbone.name=resnet81")
    assert "device=cuda" in refusal(recipe, "data.decoder.kind=dali", "data.decoder.device=gpu")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(recipe, f"output={tmp_path / 'file' / 'run'}")
    (tmp_path / "unfinished" / "commits").mkdir(parents=True)
    assert "repeat the same `preprocess shard` command" in refusal(recipe, f"data.path={tmp_path / 'unfinished'}")
    if not torch.cuda.is_available():
        assert "cuda is not available" in refusal(recipe, "device=cuda")


def test_a_checkpoint_that_does_not_fit(tmp_path: Path, data: Path, trained: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    assert "backbone.depth: 34, but" in refusal(recipe, "backbone.depth=34")
    assert "seed: 5, but" in refusal(recipe, "seed=5")
    newest = latest_checkpoint(output / "checkpoints")
    assert newest is not None
    info_file = newest / "checkpoint.json"
    info = json.loads(info_file.read_text())
    info_file.write_text(json.dumps(info | {"label_map_sha256": "0" * 64}))
    assert "label map does not match the checkpoint" in refusal(recipe)
    info_file.write_text(json.dumps(info | {"dataset": info["dataset"] | {"digest": "0" * 64}}))
    assert "digest changed since the checkpoint" in refusal(recipe)
    info_file.write_text("{")
    assert "not a checkpoint" in refusal(recipe)
    info_file.unlink()
    assert "which is not there" in refusal(recipe)


def test_a_manifest_that_is_gone_is_named(tmp_path: Path, data: Path) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", copied, tmp_path / "run")
    plan_run(load_config(recipe))  # builds the index
    next((copied / "manifest").glob("*.parquet")).unlink()
    assert "unreadable manifest" in refusal(recipe)


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("training.epoch=1", "error: training.epoch: unknown key"),
        # found so late that torchrun has started ranks, and would have said how many threads they get
        ("training.global_batch=1000000", "error: global_batch: fewer samples"),
    ],
)
def test_the_supervisor_turns_a_mistake_into_one_line(tmp_path: Path, data: Path, mistake: str, found: str) -> None:
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.supervise", "--", *training.command(recipe, 2, [mistake])],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines() == [result.stderr.strip()]
    assert result.stderr.startswith(found)
    assert "Traceback" not in result.stderr


def test_a_diverging_run_stops_on_all_ranks_and_keeps_its_checkpoint(tmp_path: Path, data: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    before = latest_checkpoint(tmp_path / "run" / "checkpoints")
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", epochs=8)
    overrides = ["optim.backbone.kind=sgd", "optim.backbone.lr=1e30", "optim.clip_backbone_norm=null"]
    overrides.append("checkpoint.every_epochs=1000")
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.supervise", "--", *training.command(recipe, 2, overrides)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "finite numbers" in result.stderr
    assert latest_checkpoint(tmp_path / "run" / "checkpoints") == before


def test_a_data_set_that_rots_stops_the_run_with_its_ledger(tmp_path: Path, data: Path) -> None:
    rotten = rotten_copy(data, tmp_path / "data")
    recipe = training.write_recipe(tmp_path / "recipe.yaml", rotten, tmp_path / "run")
    process = training.start(recipe, 2)
    text = training.finish(process)
    assert process.returncode != 0
    assert "samples could not be read" in text
    ledger = (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
    assert len(ledger) > 10
    assert {json.loads(line)["reason"] for line in ledger} <= {"crc_mismatch", "undecodable"}
