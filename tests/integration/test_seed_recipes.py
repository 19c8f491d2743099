"""The recipes of AM-softmax, FaceNet and the few hundred people: each does two steps on synthetic crops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.config.load import load_config
from pipeline.config.margins import ArcFaceMargin, CosFaceMargin
from pipeline.config.metric_heads import TripletConfig
from pipeline.config.order import IdentityBalancedConfig
from tests.datasets import make_dataset
from tests.integration import in_ranks, training

CONFIGS = training.REPOSITORY / "configs"
RECIPES = {
    "am_softmax_lfw": ["training.global_batch=4"],
    "celeba500_resnet34": ["training.global_batch=4"],
    "facenet_triplet": [
        "training.global_batch=6",
        "data.order.num_identities=2",
        "data.order.photos_per_identity=3",
        "data.order.min_photos=3",
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=24, num_identities=4, crop_px=64)


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps(tmp_path: Path, data: Path, name: str) -> None:
    overrides = [f"data.path={data}", f"output={tmp_path / 'run'}", "device=cpu", "data.num_threads=1"]
    overrides += ["training.local_batch=2", "training.epochs=10", "monitor.every_steps=1", *RECIPES[name]]
    in_ranks.dry_run(CONFIGS / f"{name}.yaml", 2, overrides)
    losses = training.losses(tmp_path / "run")
    assert sorted(losses) == [1, 2]
    assert all(math.isfinite(loss) for loss in losses.values())


def test_they_are_what_their_sources_say() -> None:
    am_softmax, few, facenet = (load_config(CONFIGS / f"{name}.yaml") for name in RECIPES)
    assert isinstance(am_softmax.head, MarginSoftmaxConfig)
    assert am_softmax.head.margin == CosFaceMargin(scale=30, margin=0.35)
    assert isinstance(few.head, MarginSoftmaxConfig)
    assert few.head.margin == ArcFaceMargin(scale=5, margin=0.1)
    assert few.training.epochs == 6 * 50
    assert facenet.head == TripletConfig(margin=0.2)
    assert isinstance(facenet.data.order, IdentityBalancedConfig)
    slots = facenet.data.order.num_identities * facenet.data.order.photos_per_identity
    assert slots == facenet.training.global_batch == 1800
    assert facenet.backbone.embedding_dim == 128
