"""A trained model as files for others: what `launch/export.py` writes and refuses, and a run that begins from it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline import checkpoint
from pipeline.checkpoint import find_checkpoint, load_backbone, read_tensors
from pipeline.config.errors import run_command
from pipeline.config.load import validate_config
from pipeline.export import parity
from pipeline.input_spec import parse_input_spec
from pipeline.model.backbones import build_backbone
from tests.datasets import make_dataset
from tests.integration import training
from tests.scripts import load_script


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
    spec = parse_input_spec(described["facemill.input"], file)
    assert (spec.height_px, spec.width_px, spec.dtype) == (training.CROP_PX, training.CROP_PX, "uint8")
    loaded = load_backbone(run, torch.device("cpu"), weights)  # type: ignore[arg-type]
    config = validate_config(loaded.config, "checkpoint")
    assert json.loads(described["facemill.backbone"]) == loaded.config["backbone"]
    model = build_backbone(config.backbone, training.CROP_PX, seed=99).eval()
    model.load_state_dict(load_file(file))
    images = torch.randint(0, 256, (2, 3, training.CROP_PX, training.CROP_PX), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images), loaded.module(images))
    centres = load_file(tmp_path / "centres.safetensors")["class_centres"]
    assert torch.equal(centres, read_tensors(find_checkpoint(run))["head/class_centres"])
    with safe_open(tmp_path / "centres.safetensors", "pt") as opened:
        of_centres = opened.metadata()
    assert of_centres["num_classes"] == "5"
    assert {key: of_centres[key] for key in ("facemill.step", "facemill.trained_on", "facemill.licence")} == {
        key: described[key] for key in ("facemill.step", "facemill.trained_on", "facemill.licence")
    }
    assert (
        not {"facemill.weights", "facemill.input"} & of_centres.keys()
    )  # they are the raw ones, whatever the backbone
    of_centres_card = (tmp_path / "centres.safetensors.md").read_text()
    assert "Class centres" in of_centres_card
    assert hashlib.sha256((tmp_path / "centres.safetensors").read_bytes()).hexdigest() in of_centres_card
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, f"{file.name}.md"]
    card = (file.parent / f"{file.name}.md").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert "bit for bit" in card


def test_a_run_begins_from_it(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert export(run, "--safetensors", file).returncode == 0
    recipe = training.write_recipe(tmp_path / "recipe.yaml", run.parent / "data", tmp_path / "next", epochs=1)
    assert "began from" in training.run(recipe, 1, [f"init_from.path={file}"])


def test_an_onnx_file_is_checked_on_the_photos_and_described(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    asked = ("--split", "train", "--precision", "int8", "--licence", "CC BY-NC 4.0")
    done = export(run, "--onnx", file, *asked)
    assert done.returncode == 0, done.stderr
    said = re.search(
        r"max \|Δcos\| (\S+) \(bound 0.05\) over (\d+) photos, accuracy (\S+) against (\S+) on", done.stdout
    )
    assert said is not None, done.stdout
    distance, num_photos, exported, trained = (float(figure) for figure in said.groups())
    assert 0 < distance < 0.05
    assert 1 < num_photos <= 80
    assert abs(exported - trained) <= 0.01
    session = onnxruntime.InferenceSession(file)
    metadata = session.get_modelmeta().custom_metadata_map
    assert parse_input_spec(metadata["facemill.input"], file).dtype == "float32"
    assert (metadata["facemill.licence"], metadata["facemill.precision"]) == ("CC BY-NC 4.0", "int8")
    for batch in (1, 3):
        images = np.zeros((batch, 3, training.CROP_PX, training.CROP_PX), np.float32)
        assert session.run(None, {"input": images})[0].shape == (batch, 64)
    card = (tmp_path / "model.onnx.md").read_text()
    digest = load_backbone(run, torch.device("cpu")).trained_on[0][1]
    assert card.count(digest) == 2  # what it was trained on, and checked on
    for part in ("CC BY-NC 4.0", "ONNX, opset 17, int8", "kind: iresnet", "not measured", "has not been evaluated"):
        assert part in card
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.md"}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command in this process, where it has to fail with one line, which is given back."""
    command = load_script(training.REPOSITORY / "launch" / "export.py")

    def run_it(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run_command(command.app)
        assert left.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "embedding" not in line]
        return line

    return run_it


def test_a_file_beyond_its_bounds_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setitem(parity.BOUNDS, "fp16", parity.Bounds(cosine_distance=1e-12, accuracy=1.0))
    file = tmp_path / "model.onnx"
    file.write_text("an earlier one")
    line = refused(run, "--onnx", file, "--split", "train", "--precision", "fp16")
    assert "model.onnx: not written, it differs from the model: max |Δcos|" in line
    assert "(bound 1e-12)" in line
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.onnx": "an earlier one"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "export: no file to write; expected at least one of --onnx"),
        (("--onnx", "OUT/m.onnx"), "--data: missing, and the run's training data DATA hold out no split 'val'"),
        (("--onnx", "OUT/m.onnx", "--program", "OUT/m.onnx"), "m.onnx: named twice"),
        (("--program", "OUT/m.pt2", "--opset", "17"), "--opset: given without --onnx"),
        (("--onnx", "OUT/m.onnx", "--calibration", "DATA"), "--calibration: given without --precision int8"),
        (("--safetensors", "OUT/m", "--centres", "OUT/m.md"), "m.md: named twice, model cards counted"),
        (("--safetensors", "OUT/m", "--centres", "OUT/none/../m"), "m: named twice"),
        (("--safetensors", "OUT/m", "--data", "OUT/none"), "--data: given without --onnx and --program"),
        (("--safetensors", "OUT/m", "--pairs", "OUT/none"), "--pairs: given without --onnx and --program"),
        (("--centres", "OUT/m", "--split", "none"), "--split: given without --onnx and --program"),
        (("--safetensors", "OUT/m", "--normalise-inside"), "--normalise-inside: given without --onnx"),
        (("--onnx", "OUT"), "cannot be written (a folder)"),
        (("--onnx", "OUT/m.onnx", "--data", "OUT/none"), "none: no such directory"),
    ],
)
def test_what_does_not_go_together(
    run: Path, tmp_path: Path, arguments: tuple[str, ...], said: str, refused: Callable[..., str]
) -> None:
    words = [word.replace("OUT", str(tmp_path)).replace("DATA", str(run.parent / "data")) for word in arguments]
    assert said.replace("DATA", str(run.parent / "data")) in refused(run, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_a_card_is_found_first(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "model.safetensors.md").mkdir()
    said = refused(run, "--safetensors", tmp_path / "model.safetensors")
    assert "model.safetensors.md: cannot be written (a folder)" in said
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors.md"]


def test_all_files_are_of_one_checkpoint(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on, and keeps another checkpoint, while the command works."""
    moving = shutil.copytree(run, tmp_path / "run")
    latest = moving / "checkpoints" / "latest"
    first = find_checkpoint(moving)
    later = shutil.copytree(first, first.with_name("step-99999999"))
    described = json.loads((later / "checkpoint.json").read_text())
    (later / "checkpoint.json").write_text(json.dumps({**described, "step": 99999999}))
    find = checkpoint.find_checkpoint

    def found_and_replaced(path: Path) -> Path:
        found = find(path)
        latest.write_text(later.name)
        return found

    monkeypatch.setattr(checkpoint, "find_checkpoint", found_and_replaced)
    files = [tmp_path / name for name in ("model.safetensors", "centres.safetensors")]
    words = [str(moving), "--safetensors", str(files[0]), "--centres", str(files[1])]
    load_script(training.REPOSITORY / "launch" / "export.py").app(words, standalone_mode=False)
    assert latest.read_text() == later.name
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["facemill.step"] == str(described["step"])


def test_training_data_that_are_gone_are_asked_for(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    data = run.parent / "data"
    data.rename(run.parent / "moved")
    try:
        line = refused(run, "--onnx", tmp_path / "model.onnx")
    finally:
        (run.parent / "moved").rename(data)
    assert f"--data: missing, and the run's training data {data} are not there any more" in line
    assert "--data DATA" in line


def test_mistakes(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "a run directory or a checkpoint" in refused(tmp_path, "--safetensors", tmp_path / "model.safetensors")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(run, "--safetensors", tmp_path / "file" / "model.safetensors")
