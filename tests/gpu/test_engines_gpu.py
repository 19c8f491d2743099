"""Engines, arithmetic and what saves memory, on GPUs: the losses of the plain run, and a resume without a seam."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.datasets import make_dataset
from tests.integration import training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SAME_LOSSES = {
    "zero0": ["engine.kind=deepspeed", "engine.stage=0"],
    "zero1": ["engine.kind=deepspeed", "engine.stage=1"],
    "zero2": ["engine.kind=deepspeed", "engine.stage=2"],
    "recomputed": ["training.activation_checkpointing=true"],
    "compiled": ["training.compile=true"],
}
OTHER_ARITHMETIC = {
    "tf32": ["training.precision=tf32"],
    "fp16": ["training.precision=fp16"],
    "fp16 under zero1": ["training.precision=fp16", "engine.kind=deepspeed", "engine.stage=1"],
    "synchronised": ["training.batch_norm=synchronised"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=200, num_identities=5, crop_px=training.CROP_PX)


def losses(directory: Path, data: Path, ranks: int, overrides: list[str]) -> dict[int, float]:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} CUDA devices")
    directory.mkdir()
    # dropout off: a GPU draws other masks than torch's generator on a CPU, compiled or not
    recipe = training.write_recipe(directory / "recipe.yaml", data, directory / "run", epochs=6)
    training.run(recipe, ranks, ["device=cuda", "backbone.dropout=0", *overrides])
    return training.losses(directory / "run")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("overrides", SAME_LOSSES.values(), ids=SAME_LOSSES.keys())
def test_the_losses_are_those_of_a_plain_run(tmp_path: Path, data: Path, overrides: list[str], ranks: int) -> None:
    plain = losses(tmp_path / "plain", data, ranks, [])
    assert losses(tmp_path / "other", data, ranks, overrides) == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("overrides", OTHER_ARITHMETIC.values(), ids=OTHER_ARITHMETIC.keys())
def test_a_run_in_other_arithmetic_learns(tmp_path: Path, data: Path, overrides: list[str], ranks: int) -> None:
    found = losses(tmp_path / "run", data, ranks, [*overrides, "optim.head.lr=0.01"])
    assert found[max(found)] < 0.7 * found[1]


def test_tf32_rounds_where_fp32_does_not(tmp_path: Path, data: Path) -> None:
    exact = losses(tmp_path / "fp32", data, 1, [])
    rounded = losses(tmp_path / "tf32", data, 1, ["training.precision=tf32"])
    assert rounded[1] != exact[1]
    assert rounded[1] == pytest.approx(exact[1], rel=1e-2)
