"""Numbers that go wrong on one rank: all skip or stop together, weights as before, a dump to do the step again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from pipeline import checkpoint, dist
from pipeline.config.divergence import DivergenceConfig
from pipeline.config.errors import UserError
from pipeline.config.load import load_config
from pipeline.data.loader import MicroBatch
from pipeline.data.manifest import open_dataset
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.divergence import SpikeDetector
from pipeline.engine.gradients import GradientPass
from pipeline.engine.run import plan_run
from pipeline.engine.trainer import Trainer
from pipeline.lock import exclusive
from tests.datasets import make_dataset
from tests.distributed.processes import run_ranks
from tests.integration import training

BATCH = 32
BAD_STEP = 4  # counted from 0
TRIPLET = {"kind": "triplet", "margin": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=96, num_identities=6, crop_px=training.CROP_PX)


def write_recipe(
    folder: Path, data: Path, divergence: dict[str, Any], head: dict[str, Any] | None = None, name: str = "run"
) -> Path:
    recipe = training.write_recipe(
        folder / f"{name}.yaml", data, folder / name, epochs=4, global_batch=BATCH, local_batch=8
    )
    tree = yaml.safe_load(recipe.read_text())
    tree |= {"divergence": divergence, "head": head or tree["head"]}
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def train(recipe: Path, inject: Callable[[Trainer], None] | None) -> tuple[list[str], str]:
    """Train on this rank with a fault; what was said, and the error in the end."""
    plan = plan_run(load_config(recipe, []))
    said: list[str] = []
    with exclusive(plan.config.output):
        trainer = Trainer(plan, torch.device("cpu"))
        if inject is not None:
            inject(trainer)
        step = trainer._train_step

        def watched_step(batch: Any) -> Any:
            state = {name: local(tensor).clone() for name, tensor in trainer.learner.tensors().items()}
            values, stop = step(batch)
            if "skipped" in values:
                after = trainer.learner.tensors()
                changed = [name for name, tensor in state.items() if not torch.equal(tensor, local(after[name]))]
                assert changed == [], changed
            return values, stop

        def listening(call: Any) -> Any:
            def called(*arguments: Any) -> Any:
                say, trainer._say = trainer._say, said.append
                try:
                    return call(*arguments)
                finally:
                    trainer._say = say

            return called

        trainer._train_step = watched_step  # type: ignore[method-assign]
        trainer._leave_out = listening(trainer._leave_out)  # type: ignore[method-assign]
        trainer._roll_back = listening(trainer._roll_back)  # type: ignore[method-assign]
        try:
            trainer.run()
        except UserError as error:
            return said, str(error)
    return said, ""


def local(tensor: Tensor) -> Tensor:
    return checkpoint.local_rows(tensor)


def spoil_embeddings(trainer: Trainer) -> None:
    """One sample of rank 1's (or the only rank's) second micro-batch."""
    embed = GradientPass._embed

    def spoiled(self: GradientPass, micro: MicroBatch, is_repeated: bool = False) -> Tensor:
        embeddings = embed(self, micro, is_repeated)
        if trainer.step == BAD_STEP and micro.position % BATCH == 24:
            factor = torch.ones_like(embeddings)
            factor[3] = torch.nan
            return embeddings * factor
        return embeddings

    trainer.learner.gradients._embed = spoiled.__get__(trainer.learner.gradients)  # type: ignore[method-assign]


def spoil_embeddings_on(trainer: Trainer) -> None:
    """From the bad step on, all of them."""
    embed = GradientPass._embed

    def spoiled(self: GradientPass, micro: MicroBatch, is_repeated: bool = False) -> Tensor:
        embeddings = embed(self, micro, is_repeated)
        return embeddings * torch.inf if trainer.step >= BAD_STEP else embeddings

    trainer.learner.gradients._embed = spoiled.__get__(trainer.learner.gradients)  # type: ignore[method-assign]


def spoil_gradient(trainer: Trainer) -> None:
    """Rank 0's gradient of one micro-batch."""
    backend = trainer.learner.backend
    assert isinstance(backend, DDPBackend)
    backward = backend.backward

    def spoiled(embeddings: Tensor, gradient: Tensor) -> None:
        is_wrong = trainer.step == BAD_STEP and dist.rank() == 0
        backward(embeddings, gradient * torch.nan if is_wrong else gradient)

    backend.backward = spoiled  # type: ignore[method-assign]


@pytest.mark.parametrize("head", [None, TRIPLET], ids=["softmax", "whole-batch"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_all_ranks_stop_with_a_dump_that_does_the_step_again(
    tmp_path: Path, data: Path, world_size: int, head: dict[str, Any] | None
) -> None:
    recipe = write_recipe(tmp_path, data, {}, head)
    results = run_ranks(train, world_size, recipe, spoil_embeddings)
    errors = {error for _, error in results}
    assert len(errors) == 1, "the same on all ranks"
    (error,) = errors
    position = BAD_STEP * BATCH + 24
    assert f"step {BAD_STEP + 1}: loss nan" in error
    assert f"first on rank {world_size - 1}, stream position {position}, samples" in error
    dump = tmp_path / "run" / "non_finite" / f"step-{BAD_STEP + 1:08d}"
    assert str(dump) in error
    report = json.loads((dump / "report.json").read_text())
    (culprit,) = report["culprits"]
    batch = load_file(dump / f"batch-rank-{world_size - 1}.safetensors")
    sample_id = int(batch[f"{position}/sample_ids"][3])
    split = open_dataset(data).split("train")
    assert culprit["keys"] == split.keys(np.flatnonzero(split.sample_id == sample_id))
    assert culprit["keys"][0] in error
    # undisturbed, and the step again from the dump
    straight = write_recipe(tmp_path, data, {}, head, name="straight")
    assert run_ranks(train, world_size, straight, None) == [([], "")] * world_size
    again = write_recipe(tmp_path, data, {}, head, name="again")
    tree = yaml.safe_load(again.read_text())
    again.write_text(yaml.safe_dump(tree | {"output": str(dump)}))
    assert run_ranks(train, world_size, again, None) == [([], "")] * world_size
    losses, expected = training.losses(dump), training.losses(tmp_path / "straight")
    assert min(losses) == BAD_STEP + 1
    assert losses == {step: loss for step, loss in expected.items() if step > BAD_STEP}, "bit for bit"


@pytest.mark.parametrize("world_size", [1, 2])
def test_skips_and_goes_on(tmp_path: Path, data: Path, world_size: int) -> None:
    recipe = write_recipe(tmp_path, data, {"on_non_finite": "skip"})
    for said, error in run_ranks(train, world_size, recipe, spoil_embeddings):
        assert error == ""
        assert len(said) == 1
        assert f"step {BAD_STEP + 1} skipped: loss nan" in said[0]
    losses = training.records(tmp_path / "run", "loss")
    assert sorted(losses) == [step for step in range(1, 13) if step != BAD_STEP + 1]
    assert all(np.isfinite(loss) for loss in losses.values())
    assert training.records(tmp_path / "run", "skipped") == {BAD_STEP + 1: 1}


def test_stops_after_some_skipped_in_a_row(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path, data, {"on_non_finite": "skip", "max_skipped": 3})
    for said, error in run_ranks(train, 2, recipe, spoil_embeddings_on):
        assert len(said) == 2
        assert f"step {BAD_STEP + 3}: loss nan" in error
    assert len(list((tmp_path / "run" / "non_finite").iterdir())) == 1, "of the first in a row"


def test_a_gradient_on_one_rank_stops_both(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path, data, {})
    one, other = run_ranks(train, 2, recipe, spoil_gradient)
    assert one == other
    assert "gradient norms nan (backbone)" in one[1]
    dump = tmp_path / "run" / "non_finite" / f"step-{BAD_STEP + 1:08d}"
    report = json.loads((dump / "report.json").read_text())
    assert np.isfinite(report["loss"])
    assert report["culprits"] == []
    assert len(report["non_finite_gradients"]) > 10
    tensors = checkpoint.read_tensors(dump / "checkpoints" / f"step-{BAD_STEP:08d}")
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def turn_centres_round(trainer: Trainer) -> None:
    """At the bad step all photos are suddenly far from their own class centre."""
    step = trainer.learner.gradients.backward

    def turned(*arguments: Any) -> Any:
        if trainer.step == 10:
            with torch.no_grad():
                trainer.learner.head.get_parameter("class_centres").neg_()
        return step(*arguments)

    trainer.learner.gradients.backward = turned  # type: ignore[method-assign]


@pytest.mark.parametrize("policy", ["warn", "roll_back"])
def test_a_spike(tmp_path: Path, data: Path, policy: str) -> None:
    settings = {"spike_factor": 1.1, "spike_window": 10, "on_spike": policy}
    head = {"kind": "margin_softmax", "margin": {"kind": "cosface", "scale": 30, "margin": 0.1}}
    recipe = write_recipe(tmp_path, data, settings, head)
    text = recipe.read_text().replace("0.0001", "0.01")  # the rate: the centres have to be somewhere
    recipe.write_text(text)
    (said, error), other = run_ranks(train, 2, recipe, turn_centres_round)
    assert error == ""
    assert (said, error) == other
    losses = training.records(tmp_path / "run", "loss")
    assert said[0].startswith("warning: step 11: loss")
    if policy == "warn":
        assert losses[12] > 1.1 * losses[10]
        return
    assert "weights taken back to step-00000010" in said[0]
    assert 11 not in losses
    assert losses[12] < 1.1 * losses[10]
    last = checkpoint.latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert last is not None
    assert (checkpoint.read_info(last).step, checkpoint.read_info(last).samples) == (12, 12 * BATCH)


def test_what_a_spike_is() -> None:
    detector = SpikeDetector(DivergenceConfig(spike_factor=2, spike_window=10), [1.0] * 9)
    assert not detector.is_spike(5.0), "too few to tell"
    assert detector.usual() == 1.0
    assert not detector.is_spike(1.9)
    assert detector.is_spike(2.1)
    assert detector.losses == [*[1.0] * 8, 5.0, 1.9], "a spike is not remembered"
    assert not detector.is_spike(torch.nan)
    detector.forget()
    assert not detector.is_spike(100.0)
    assert not SpikeDetector(DivergenceConfig(), [1.0] * 50).is_spike(1e9)
    assert SpikeDetector(DivergenceConfig(), []).losses == []
