"""Every decoder, backbone, optimizer, schedule and precision that a configuration can name trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.datasets import make_dataset
from tests.integration import training

COMMON = ["training.epochs=6", "checkpoint.every_epochs=6", "optim.head.lr=0.01", "monitor.tensorboard=true"]
VARIANTS = {
    "dali, bf16, cosine": [
        "data.decoder.kind=dali",
        "training.precision=bf16",
        "schedule.kind=cosine",
        "schedule.warmup_epochs=1",
        "optim.backbone.lr=0.01",
    ],
    "mobilefacenet, adamw, cosface": [
        "backbone.kind=mobilefacenet",
        "backbone.width=0.125",
        "backbone.embedding_dim=64",
        "optim.backbone.kind=adamw",
        "optim.backbone.lr=1e-3",
        "head.margin.kind=cosface",
        "head.margin.scale=8",
    ],
    "torchvision, plain softmax, clipped head": [
        "backbone.kind=torchvision",
        "backbone.name=resnet18",
        "backbone.embedding_dim=64",
        "optim.backbone.lr=0.01",
        "optim.head.lr=0.05",
        "optim.clip_head_norm=1.0",
        "head.margin.kind=softmax",
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=160, num_identities=4, crop_px=training.CROP_PX)


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_it_trains(tmp_path: Path, data: Path, overrides: list[str]) -> None:
    output = tmp_path / "run"
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, output)
    training.run(recipe, 1, [*COMMON, *overrides])
    losses = training.losses(output)
    assert losses[max(losses)] < 0.7 * losses[1]
    record = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"lr", "samples_per_s", "data_wait", "epoch", "backbone_grad_norm", "accuracy"} <= record.keys()
    assert list((output / "tensorboard").glob("events.*"))
    resolved = yaml.safe_load((output / "config.yaml").read_text())
    assert resolved["training"]["epochs"] == 6
    assert resolved["optim"]["clip_backbone_norm"] == 5.0
