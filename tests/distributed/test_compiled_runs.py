"""A compiled backbone in whole runs on two ranks, alone and recomputed, under both engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.distributed.engine_runs import ENGINES, Run, train_all
from tests.integration import training

NUM_STEPS, GLOBAL_BATCH, NUM_SAMPLES = 3, 32, 96


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_runs_have_the_losses_of_plain_ones(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, num_samples=NUM_SAMPLES, num_identities=11, crop_px=training.CROP_PX)
    recipe = training.write_recipe(
        tmp_path / "recipe.yaml", data, tmp_path / "run", epochs=1, global_batch=GLOBAL_BATCH, local_batch=8
    )
    compiled, recomputed = "training.compile=true", "training.activation_checkpointing=true"
    runs = {
        "plain": ENGINES["ddp"],
        "ddp": [*ENGINES["ddp"], compiled],
        "ddp, recomputed": [*ENGINES["ddp"], compiled, recomputed],
        "zero2": [*ENGINES["zero2"], compiled],
    }
    made = [Run(tmp_path / name, tuple(overrides)) for name, overrides in runs.items()]
    plain, *others = train_all(recipe, made, 2, timeout_s=800)
    assert sorted(plain) == list(range(1, NUM_STEPS + 1))
    for losses in others:
        assert losses == pytest.approx(plain, rel=1e-5)
