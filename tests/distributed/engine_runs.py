"""Whole runs on the ranks of a test: several configurations, one after the other, in the same processes."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config.load import load_config
from pipeline.engine.run import plan_run
from pipeline.engine.trainer import Trainer
from tests.distributed.processes import run_ranks
from tests.integration import training

ENGINES = {
    "ddp": ["engine.kind=ddp"],
    **{f"zero{stage}": ["engine.kind=deepspeed", f"engine.stage={stage}"] for stage in (0, 1, 2)},
}


@dataclass(frozen=True)
class Run:
    """A run to be made: its directory and what differs from the recipe."""

    output: Path
    overrides: tuple[str, ...]


def train_all(recipe: Path, runs: list[Run], world_size: int, timeout_s: float = 120) -> list[dict[int, float]]:
    """The losses by step of runs on `world_size` ranks; a run whose directory has a checkpoint is resumed."""
    for run in runs:
        run.output.mkdir(exist_ok=True)
    run_ranks(_train_on_a_rank, world_size, recipe, runs, timeout_s=timeout_s)
    return [training.losses(run.output) for run in runs]


def _train_on_a_rank(recipe: Path, runs: list[Run]) -> None:
    for run in runs:
        config = load_config(recipe, [f"output={run.output}", *run.overrides])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            Trainer(plan_run(config), torch.device("cpu")).run()
        assert "deepspeed" not in said.getvalue().lower(), said.getvalue()
