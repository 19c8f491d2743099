"""The recipes for large data sets: their networks, heads and optimizers take two steps on a few synthetic people."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.engine import estimate as estimating
from pipeline.engine import measure_step
from pipeline.engine.run import plan_run
from pipeline.engine.trainer import train
from tests.datasets import make_dataset
from tests.integration import training

RECIPES = ["ms1mv3_r50", "glint360k_r100", "webface42m_r100_pfc", "webface42m_vit_b"]
NUM_PEOPLE = 6
WIDTHS = [pytest.param(0.125, id="narrow"), pytest.param(1.0, id="whole", marks=pytest.mark.slow)]
SMALLER = ["device=cpu", "training.global_batch=4", "training.local_batch=2", "data.num_threads=1"]


def recipe(name: str) -> Path:
    return training.REPOSITORY / "configs" / f"{name}.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=8, num_identities=NUM_PEOPLE, crop_px=112)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps(name: str, width: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.trainer.keep_freed_memory", lambda: None)
    output = tmp_path / "run"
    overrides = [f"output={output}", f"data.path={data}", "training.epochs=1", "monitor.tensorboard=false"]
    overrides += ["monitor.every_steps=1", "schedule.warmup_epochs=0", f"backbone.width={width}"]
    config = load_config(recipe(name), [*SMALLER, *overrides])
    result = train(plan_run(config))
    assert (result.step, result.is_finished) == (2, True)
    losses = training.losses(output)
    assert list(losses) == [1, 2]
    assert all(math.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("ms1mv3_r50", 0.125),
        ("webface42m_vit_b", 0.125),
        *(pytest.param(name, 1.0, marks=pytest.mark.slow) for name in RECIPES),
    ],
)
def test_estimates(name: str, width: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_step, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(measure_step, "_NUM_TIMED_STEPS", 1)
    monkeypatch.setattr(estimating, "_run", measure_step.measure)
    monkeypatch.setattr(estimating, "seconds_per_byte", lambda: 1e-9)
    config = load_config(recipe(name), [*SMALLER, f"backbone.width={width}"])
    found = estimating.estimate(config, NUM_PEOPLE, 2, 112)
    assert found.memory["backbone"] >= 4 * found.backbone.num_parameters
    assert f"backbone: {found.backbone.num_parameters:,} parameters" in estimating.describe(found)


def test_they_have_the_published_hyper_parameters() -> None:
    batches = {name: load_config(recipe(name)).training for name in RECIPES}
    assert [batches[name].global_batch for name in RECIPES] == [8 * 128, 8 * 128, 16 * 256, 8 * 256 * 12]
    assert [batches[name].epochs for name in RECIPES] == [20, 20, 20, 40]
    heads = [load_config(recipe(name)).head for name in RECIPES]
    assert [head.sample_rate for head in heads] == [1.0, 1.0, 0.2, 0.3]  # type: ignore[union-attr]
