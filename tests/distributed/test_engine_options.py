"""What changes how a backbone computes, in whole runs on two ranks under both engines."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import dist
from pipeline.config.backbones import IResNetConfig
from pipeline.config.engine import DDPConfig, DeepSpeedConfig
from pipeline.config.optim import SGDConfig
from pipeline.engine.backend import Backend
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.deepspeed import DeepSpeedBackend
from pipeline.engine.loss_scale import INITIAL_SCALE
from pipeline.model.backbones import build_backbone
from tests.datasets import make_dataset
from tests.distributed.engine_runs import ENGINES, Run, train_all
from tests.distributed.processes import run_ranks
from tests.integration import training

SAVED_AT, NUM_STEPS = 2, 4
GLOBAL_BATCH, NUM_SAMPLES = 32, 96
TRAINED_UNDER = ("ddp", "zero2")
OPTIONS = {
    "plain": (),
    "recomputed": ("training.activation_checkpointing=true",),
    "synchronised": ("training.batch_norm=synchronised",),
    "synchronised and recomputed": ("training.batch_norm=synchronised", "training.activation_checkpointing=true"),
    "fp16": ("training.precision=fp16",),
    "bf16": ("training.precision=bf16",),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("options")
    data = make_dataset(directory, num_samples=NUM_SAMPLES, num_identities=11, crop_px=training.CROP_PX)
    return training.write_recipe(
        directory / "recipe.yaml",
        data,
        directory / "run",
        epochs=NUM_STEPS * GLOBAL_BATCH / NUM_SAMPLES,
        global_batch=GLOBAL_BATCH,
        local_batch=8,
    )


@functools.cache
def outputs(recipe: Path) -> dict[tuple[str, str], Path]:
    """Directories of finished runs by engine and option."""
    every = f"checkpoint.every_epochs={SAVED_AT * GLOBAL_BATCH / NUM_SAMPLES}"
    found = {(engine, option): recipe.parent / f"{engine}-{option}" for engine in TRAINED_UNDER for option in OPTIONS}
    runs = [Run(path, (every, *ENGINES[engine], *OPTIONS[option])) for (engine, option), path in found.items()]
    train_all(recipe, runs, 2)
    return found


def curve(recipe: Path, engine: str, option: str) -> dict[int, float]:
    losses = training.losses(outputs(recipe)[engine, option])
    assert sorted(losses) == list(range(1, NUM_STEPS + 1))
    return losses


@pytest.mark.parametrize("engine", TRAINED_UNDER)
@pytest.mark.parametrize(("option", "than"), [("recomputed", "plain"), ("synchronised and recomputed", "synchronised")])
def test_recomputing_changes_no_bit_of_a_run(recipe: Path, engine: str, option: str, than: str) -> None:
    assert curve(recipe, engine, option) == curve(recipe, engine, than)


@pytest.mark.parametrize("option", OPTIONS)
def test_both_engines_do_the_same_with_it(recipe: Path, option: str) -> None:
    first, second = (curve(recipe, engine, option) for engine in TRAINED_UNDER)
    # rounding to 8 or 11 bits magnifies the last digit's differences
    tolerance = 1e-3 if option in ("fp16", "bf16") else 1e-5
    assert second == pytest.approx(first, rel=tolerance)


def test_other_arithmetic_and_other_groups_are_no_empty_promises(recipe: Path) -> None:
    plain = curve(recipe, "ddp", "plain")
    for option in ("synchronised", "fp16", "bf16"):
        assert curve(recipe, "ddp", option) != plain
    assert curve(recipe, "ddp", "bf16") == pytest.approx(plain, rel=1e-2)


@functools.cache
def resumed(recipe: Path) -> dict[tuple[str, str], Path]:
    """Directories of runs that went on in fp16 under an engine, by the engine and what they were before."""
    found = {}
    for engine, option in (("ddp", "fp16"), ("zero2", "fp16"), ("zero2", "plain")):
        found[engine, option] = recipe.parent / f"{engine}-{option}-resumed"
        shutil.copytree(outputs(recipe)[engine, option], found[engine, option])
        (found[engine, option] / "checkpoints" / "latest").write_text(f"step-{SAVED_AT:08d}")
    runs = [Run(path, ("training.precision=fp16", *ENGINES[engine])) for (engine, _), path in found.items()]
    train_all(recipe, runs, 2)
    return found


@pytest.mark.parametrize("engine", TRAINED_UNDER)
def test_an_fp16_run_leaves_steps_out_and_goes_on_with_its_scale(recipe: Path, engine: str) -> None:
    whole = outputs(recipe)[engine, "fp16"]
    left_out, scales = training.metric(whole, "left_out"), training.metric(whole, "loss_scale")
    assert left_out[1] == 1, "so large a first scale overflows"
    assert left_out[NUM_STEPS] == 0
    assert scales[NUM_STEPS] == INITIAL_SCALE / 2 ** sum(left_out.values())
    assert training.losses(resumed(recipe)[engine, "fp16"]) == training.losses(whole)
    assert training.metric(resumed(recipe)[engine, "fp16"], "loss_scale") == scales


def test_a_run_may_change_its_precision(recipe: Path) -> None:
    run = resumed(recipe)["zero2", "plain"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss_scale"] <= INITIAL_SCALE
    assert last["loss"] == pytest.approx(curve(recipe, "zero2", "plain")[NUM_STEPS], rel=0.1)


def overflow_on_one_rank(rank: int) -> list[tuple[bool, bool, float, bool]]:
    """By engine: was the step left out, did a parameter move by it, the scale after it, does the next step count."""
    found = []
    for engine in (DDPConfig(), DeepSpeedConfig(stage=0), DeepSpeedConfig(stage=1), DeepSpeedConfig(stage=2)):
        model = build_backbone(IResNetConfig(depth=18, width=0.125, embedding_dim=16), training.CROP_PX, seed=0)
        device = torch.device("cpu")
        backend: Backend
        if isinstance(engine, DeepSpeedConfig):
            backend = DeepSpeedBackend(model, SGDConfig(), "fp16", device, engine)
        else:
            backend = DDPBackend(model, SGDConfig(), "fp16", device)
        scale = backend.loss_scale
        assert scale is not None
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        is_left_out = scale.leaves_out(_backward(backend, 1e9 if dist.rank() == rank else 1e-6))
        backend.zero_grad()
        has_moved = any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
        value = scale.value
        norm = _backward(backend, 1e-6)
        counts = not scale.leaves_out(norm)
        backend.step(0.1, norm, 1.0)
        found.append((is_left_out, has_moved, value, counts))
    return found


def _backward(backend: Backend, size: float) -> torch.Tensor:
    """One step's gradients, of embeddings' gradients of a size; gives their norm."""
    images = torch.randint(0, 256, (4, 3, training.CROP_PX, training.CROP_PX), dtype=torch.uint8)
    with backend.accumulate(is_last=True):
        embeddings = backend.forward(images)
        backend.backward(embeddings, torch.full_like(embeddings, size))
    return backend.gradient_norm()


def test_an_overflow_on_one_rank_leaves_the_step_out_on_all() -> None:
    assert run_ranks(overflow_on_one_rank, 2, 1) == [[(True, False, INITIAL_SCALE / 2, True)] * 4] * 2
