"""Metrics to Weights & Biases, where the package is installed."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.config.watching import WandbConfig
from pipeline.monitor.sink import Record, RunStart, store_run_id, stored_run_id


class ToWandb:
    """One run there for one run here, however often it is resumed.

    Steps that a resumed run does again are not taken there a second time; their figures are the same.
    """

    is_remote = True

    def __init__(self, config: WandbConfig, start: RunStart) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.name,
            tags=list(config.tags),
            id=stored_run_id(start.output, "wandb"),
            resume="allow",
            dir=str(start.output),
            config=dict(start.config),
        )
        store_run_id(start.output, "wandb", self._run.id)

    @property
    def opening_line(self) -> str:
        return f"metrics to Weights & Biases, run {self._run.id}"

    def write(self, values: Record) -> None:
        self._run.log(dict(values), step=int(values["step"]))

    def close(self, is_failed: bool) -> None:
        self._run.finish(exit_code=int(is_failed))
