"""Training on a GPU: the head against the CPU's float64, and runs that learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.margins import ArcFaceMargin
from pipeline.model.head import Head, build_head
from tests.datasets import make_dataset
from tests.integration import training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def head(num_classes: int) -> Head:
    return build_head(MarginSoftmaxConfig(margin=ArcFaceMargin(), block_bytes=1 << 20), num_classes, 128, seed=0)


def test_head_on_the_gpu_equals_float64_on_the_cpu() -> None:
    num_classes, batch = 10_007, 64
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(batch, 128, generator=generator)
    labels = torch.randint(0, num_classes, (batch,), generator=generator)
    ids, valid = torch.arange(batch), torch.arange(batch) % 7 != 3
    gradients, losses = [], []
    for device, dtype in (("cuda", torch.float32), ("cpu", torch.float64)):
        module = head(num_classes).to(device, dtype)
        inputs = embeddings.to(device, dtype).requires_grad_()
        output = module(inputs, labels.to(device), ids.to(device), valid.to(device), 0)
        output.loss.backward()
        losses.append(float(output.loss))
        centres = module.get_parameter("class_centres").grad
        assert inputs.grad is not None
        assert centres is not None
        gradients.append((inputs.grad.double().cpu(), centres.double().cpu()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for ours, reference in zip(*gradients, strict=True):
        assert (ours - reference).norm() <= 1e-5 * reference.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_on_the_gpu_learns(tmp_path: Path, precision: str, ranks: int) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} CUDA devices")
    data = make_dataset(tmp_path / "data", num_samples=200, num_identities=5, crop_px=training.CROP_PX)
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    training.run(recipe, ranks, ["device=cuda", f"training.precision={precision}", "optim.head.lr=0.01"])
    losses = training.losses(tmp_path / "run")
    assert losses[max(losses)] < 0.5 * losses[1]
