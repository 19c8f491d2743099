"""A model of arcface_torch is imported, evaluated and trained on, as a user does it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint import load_backbone, read_info, read_tensors
from pipeline.config.errors import UserError
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.engine.embed_rows import embed_rows
from pipeline.interop.arcface_torch import read_backbone
from pipeline.interop.imported import check_crops, evaluation_model, save_for_evaluation
from tests.arcface_torch_reference import ReferenceIResNet, saved, scaled, trained_looking
from tests.datasets import make_dataset
from tests.integration import training

DIM = 16


def launch(script: str, *arguments: object, code: int = 0) -> str:
    command = [sys.executable, str(training.REPOSITORY / "launch" / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout if code == 0 else result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=35, num_identities=5, crop_px=training.CROP_PX)


@pytest.fixture(scope="module")
def reference() -> ReferenceIResNet:
    return trained_looking(18, seed=3, embedding_dim=DIM, crop_px=training.CROP_PX)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, data: Path, reference: ReferenceIResNet) -> Path:
    """A backbone, and the centres of two ranks: each person's mean embedding, three times as long."""
    directory = tmp_path_factory.mktemp("arcface_torch")
    torch.save(saved(reference), directory / "model.pt")
    centres = 3 * mean_embeddings(reference, open_dataset(data).split("train"))
    torch.save({"weight": centres[:3].clone()}, directory / "softmax_fc_gpu_0.pt")
    torch.save({"weight": centres[3:].clone()}, directory / "softmax_fc_gpu_1.pt")
    return directory


def mean_embeddings(reference: ReferenceIResNet, split: SplitIndex) -> torch.Tensor:
    class Model(torch.nn.Module):
        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            return reference(scaled(crops))

    sums = torch.zeros(split.num_labels, DIM)
    for rows, embeddings in embed_rows(Model(), split, training.CROP_PX, np.arange(len(split))):
        sums.index_add_(0, torch.from_numpy(split.label[rows].astype(np.int64)), embeddings)
    return torch.nn.functional.normalize(sums)


def write_reference(path: Path, reference: ReferenceIResNet, crops: np.ndarray, shift: float = 0.0) -> None:
    with torch.no_grad():
        embeddings = reference(scaled(torch.from_numpy(crops).permute(0, 3, 1, 2))).numpy()
    np.savez(path, crops=crops, embeddings=embeddings + shift)


def test_a_backbone_is_checked_and_evaluated(
    tmp_path: Path, data: Path, files: Path, reference: ReferenceIResNet
) -> None:
    output = tmp_path / "run"
    crops = np.random.default_rng(0).integers(0, 256, (5, training.CROP_PX, training.CROP_PX, 3), dtype=np.uint8)
    arguments = ["--backbone", files / "model.pt", "--output", output]
    write_reference(tmp_path / "reference.npz", reference, crops)
    text = launch("import_arcface.py", *arguments, "--check-crops", tmp_path / "reference.npz")
    assert "IResNet-18, 32 px, 16 dimensions" in text
    assert "the same embeddings" in text
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        ours, theirs = load_backbone(output, torch.device("cpu")).module(images), reference(scaled(images))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.std()))
    launch("evaluate.py", "--model", output, "--data", data, "--split", "train")
    assert json.loads((output / "evaluation" / "evaluation.json").read_text())["verification"]["num_same"] > 10

    imported = read_backbone(files / "model.pt")
    with pytest.raises(UserError, match="a run stands there already"):
        save_for_evaluation(output, imported, [0.0] * 10, {})
    write_reference(tmp_path / "shifted.npz", reference, crops, shift=0.1)
    with pytest.raises(UserError, match=r"shifted.npz: embeddings differ by 0\.0"):
        check_crops(evaluation_model(imported), tmp_path / "shifted.npz")
    np.savez(tmp_path / "other.npz", crops=crops.transpose(0, 3, 1, 2), embeddings=np.zeros((5, DIM)))
    with pytest.raises(UserError, match="expected crops uint8"):
        check_crops(evaluation_model(imported), tmp_path / "other.npz")


def recipe(tmp_path: Path, data: Path, extra: Sequence[str] = ()) -> tuple[Path, list[str]]:
    path = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", epochs=1)
    batches = ["training.global_batch=16", "training.local_batch=8"]
    return path, ["backbone.width=1", f"backbone.embedding_dim={DIM}", *batches, *extra]


def test_training_goes_on_from_backbone_and_centres(
    tmp_path: Path, data: Path, files: Path, reference: ReferenceIResNet
) -> None:
    path, overrides = recipe(tmp_path, data)
    arguments = ["--backbone", files / "model.pt", "--config", path, "--centres", files, *overrides]
    text = launch("import_arcface.py", *arguments)
    assert "5 class centres; of 35 photos 100% are nearest to their own person's" in text
    start = tmp_path / "run" / "checkpoints" / "step-00000000"
    tensors = read_tensors(start)
    expected = 3 * mean_embeddings(reference, open_dataset(data).split("train"))
    torch.testing.assert_close(tensors["head/class_centres"], expected)
    assert not tensors["head_optimizer/class_centres/momentum_buffer"].any()
    assert "imported_from" in read_info(start).versions
    assert "resumed at step 0 (0 samples), 1 → 2 ranks" in training.run(tmp_path / "run" / "config.yaml", 2)
    trained = read_tensors(tmp_path / "run" / "checkpoints" / "step-00000002")["head/class_centres"]
    assert 0 < (trained - expected).abs().max() < 1e-2


def test_what_does_not_fit_is_one_line(tmp_path: Path, data: Path, files: Path) -> None:
    model = files / "model.pt"
    path, overrides = recipe(tmp_path, data, ["backbone.depth=50"])
    text = launch("import_arcface.py", "--backbone", model, "--config", path, *overrides, code=2)
    assert text == f"error: backbone.depth: 50, but {model} has 18; backbone.depth=18\n"
    overrides = recipe(tmp_path, data)[1]
    one_rank = tmp_path / "one_rank"
    one_rank.mkdir()
    (one_rank / "softmax_fc_gpu_0.pt").symlink_to(files / "softmax_fc_gpu_0.pt")
    text = launch("import_arcface.py", "--backbone", model, "--config", path, "--centres", one_rank, *overrides, code=2)
    assert "3 class centres; expected 5, one a person; is a rank's file missing" in text
    assert "neither is given" in launch("import_arcface.py", "--backbone", model, code=2)
    assert not (tmp_path / "run").exists()
