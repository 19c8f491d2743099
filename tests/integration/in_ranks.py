"""Training runs inside test processes: many times faster to start than real ones, and stopped after an exact step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.checkpoint import latest_checkpoint, read_tensors
from pipeline.config.load import load_config
from pipeline.data.loader import StepBatch
from pipeline.engine.run import plan_run
from pipeline.engine.trainer import Trainer
from tests.distributed.processes import run_ranks


class StoppedTrainer(Trainer):
    """Asked to stop while it does a certain step, as by SIGTERM."""

    stop_at: int | None = None

    def _train_step(self, batch: StepBatch) -> tuple[dict[str, torch.Tensor | float], bool]:
        if self.step + 1 == self.stop_at:
            self._stop_asked = True
        return super()._train_step(batch)


def train(recipe: Path, ranks: int, overrides: Sequence[str] = (), stop_at: int | None = None) -> None:
    """Train a recipe, or go on with it, to its end or until a step is done and saved."""
    run_ranks(_train, ranks, recipe, tuple(overrides), stop_at, timeout_s=120)


def dry_run(recipe: Path, num_steps: int, overrides: Sequence[str] = ()) -> None:
    """Do the first steps of a recipe on one rank and save nothing."""
    run_ranks(_dry_run, 1, recipe, num_steps, tuple(overrides), timeout_s=120)


def saved(output: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's newest checkpoint."""
    path = latest_checkpoint(output / "checkpoints")
    assert path is not None
    return read_tensors(path)


def differences(one: Path, other: Path) -> list[str]:
    """Which tensors of two runs' newest checkpoints are not bit-equal."""
    ours, theirs = saved(one), saved(other)
    assert ours.keys() == theirs.keys()
    return [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]


class _DryTrainer(StoppedTrainer):
    def _save(self, *arguments: object) -> float:
        return 0.0


def _dry_run(recipe: Path, num_steps: int, overrides: Sequence[str]) -> None:
    _run(_DryTrainer, recipe, overrides, num_steps)


def _train(recipe: Path, overrides: Sequence[str], stop_at: int | None) -> None:
    _run(StoppedTrainer, recipe, overrides, stop_at)


def _run(kind: type[StoppedTrainer], recipe: Path, overrides: Sequence[str], stop_at: int | None) -> None:
    plan = plan_run(load_config(recipe, overrides))
    plan.config.output.mkdir(parents=True, exist_ok=True)
    trainer = kind(plan, torch.device("cpu"))
    trainer.stop_at = stop_at
    trainer.run()
