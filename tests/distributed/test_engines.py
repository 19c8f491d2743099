"""DeepSpeed with each ZeRO stage trains as DDP does, and as one process does."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from pipeline import dist
from pipeline.config.backbones import IResNetConfig
from pipeline.config.engine import DeepSpeedConfig
from pipeline.config.optim import SGDConfig
from pipeline.engine.deepspeed import DeepSpeedBackend
from pipeline.model.backbones import build_backbone
from tests.datasets import make_dataset
from tests.distributed.engine_runs import ENGINES, Run, train_all
from tests.distributed.processes import run_ranks
from tests.integration import training

NUM_STEPS = 20
GLOBAL_BATCH, LOCAL_BATCH = 32, 8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four micro-batches a step: two ranks take two each; of three ranks, two take two and a masked one fills the gap
    of the others."""
    directory = tmp_path_factory.mktemp("engines")
    data = make_dataset(directory, num_samples=160, num_identities=11, crop_px=training.CROP_PX)
    return training.write_recipe(
        directory / "recipe.yaml",
        data,
        directory / "run",
        epochs=NUM_STEPS * GLOBAL_BATCH / 160,
        global_batch=GLOBAL_BATCH,
        local_batch=LOCAL_BATCH,
    )


@functools.cache
def curves(recipe: Path, world_size: int) -> dict[str, dict[int, float]]:
    """Losses by engine; clipping is in force in all steps."""
    clipped = ["optim.clip_backbone_norm=0.5", "checkpoint.every_epochs=100"]
    runs = [Run(recipe.parent / f"{name}-{world_size}", (*clipped, *overrides)) for name, overrides in ENGINES.items()]
    return dict(zip(ENGINES, train_all(recipe, runs, world_size), strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_all_engines_train_as_one_process_does(recipe: Path, engine: str, world_size: int) -> None:
    expected, found = curves(recipe, 1)["ddp"], curves(recipe, world_size)[engine]
    assert sorted(found) == list(range(1, NUM_STEPS + 1))
    assert expected[NUM_STEPS] < 0.95 * expected[1]
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-5), f"step {step}"


def train_again_and_again() -> list[float]:
    """The gradient's norm in runs that follow each other, each with a process group of its own."""
    norms = []
    for _ in range(2):
        model = build_backbone(IResNetConfig(depth=18, width=0.125, embedding_dim=16), training.CROP_PX, seed=0)
        backend = DeepSpeedBackend(model, SGDConfig(), "fp32", torch.device("cpu"), DeepSpeedConfig(stage=2))
        with backend.accumulate(is_last=True):
            embeddings = backend.forward(torch.zeros(4, 3, training.CROP_PX, training.CROP_PX, dtype=torch.uint8))
            backend.backward(embeddings, torch.ones_like(embeddings).cumsum(0))
        norms.append(float(backend.gradient_norm()))
        dist.shutdown()
    return norms


def test_a_process_may_train_again() -> None:
    ((first, second),) = run_ranks(train_again_and_again, 1)
    assert first == second > 0
