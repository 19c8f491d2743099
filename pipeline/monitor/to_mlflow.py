"""Metrics to MLflow, where the package is installed."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.config.watching import MlflowConfig
from pipeline.monitor.sink import Record, RunStart, store_run_id, stored_run_id


class ToMlflow:
    """One run there for one run here, however often it is resumed."""

    is_remote = True

    def __init__(self, config: MlflowConfig, start: RunStart) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        self._mlflow.set_tracking_uri(config.tracking_uri)
        self._mlflow.set_experiment(config.experiment)
        known = stored_run_id(start.output, "mlflow")
        run = self._mlflow.start_run(run_id=known, run_name=None if known else config.name)
        self._run_id: str = run.info.run_id
        store_run_id(start.output, "mlflow", self._run_id)
        # as a file: parameters cannot change there, and a resumed run's may have
        self._mlflow.log_dict(dict(start.config), "config.json")

    @property
    def opening_line(self) -> str:
        return f"metrics to MLflow, run {self._run_id}"

    def write(self, values: Record) -> None:
        self._mlflow.log_metrics({k: float(v) for k, v in values.items()}, step=int(values["step"]), synchronous=False)

    def close(self, is_failed: bool) -> None:
        self._mlflow.end_run(status="FAILED" if is_failed else "FINISHED")
