"""A trained model as safetensors: what `launch/export.py` writes, and a run that begins from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.checkpoint import find_checkpoint, load_backbone, read_tensors
from pipeline.config.load import validate_config
from pipeline.model.backbones import build_backbone
from tests.datasets import make_dataset
from tests.integration import training


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = make_dataset(folder, num_samples=80, num_identities=5, crop_px=training.CROP_PX)
    overrides = ["training.epochs=1", "ema.decay=0.5", "ema.warmup=false"]
    training.run(training.write_recipe(folder / "recipe.yaml", data, folder / "run"), 2, overrides)
    return folder / "run"


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(training.REPOSITORY / "launch" / "export.py"), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_holds_the_weights_and_what_it_takes_to_use_them(run: Path, tmp_path: Path, weights: str) -> None:
    file = tmp_path / "deep" / "model.safetensors"
    done = export(run, "--safetensors", file, "--centres", tmp_path / "centres.safetensors", "--weights", weights)
    assert done.returncode == 0, done.stderr
    assert f"({weights})" in done.stdout
    assert "class centres 5 × 64" in done.stdout
    with safe_open(file, "pt") as opened:
        described = opened.metadata()
    assert json.loads(described["input"])["size_px"] == training.CROP_PX
    loaded = load_backbone(run, torch.device("cpu"), weights)  # type: ignore[arg-type]
    config = validate_config(loaded.config, "checkpoint")
    assert json.loads(described["backbone"]) == loaded.config["backbone"]
    model = build_backbone(config.backbone, training.CROP_PX, seed=99).eval()
    model.load_state_dict(load_file(file))
    images = torch.randint(0, 256, (2, 3, training.CROP_PX, training.CROP_PX), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images), loaded.module(images))
    centres = load_file(tmp_path / "centres.safetensors")["class_centres"]
    assert torch.equal(centres, read_tensors(find_checkpoint(run))["head/class_centres"])
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_run_begins_from_it(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert export(run, "--safetensors", file).returncode == 0
    recipe = training.write_recipe(tmp_path / "recipe.yaml", run.parent / "data", tmp_path / "next", epochs=1)
    assert "began from" in training.run(recipe, 1, [f"init_from.path={file}"])


def test_mistakes(run: Path, tmp_path: Path) -> None:
    done = export(tmp_path, "--safetensors", tmp_path / "model.safetensors")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    (tmp_path / "file").write_text("")
    done = export(run, "--safetensors", tmp_path / "file" / "model.safetensors")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be written" in done.stderr
