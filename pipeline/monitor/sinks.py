"""From the `monitor` section to the places that metrics go to."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.errors import UserError
from pipeline.config.watching import MonitorConfig
from pipeline.monitor.sink import RunStart, Sink
from pipeline.monitor.to_jsonl import ToJsonl
from pipeline.monitor.to_mlflow import ToMlflow
from pipeline.monitor.to_prometheus import ToPrometheus
from pipeline.monitor.to_tensorboard import ToTensorboard
from pipeline.monitor.to_wandb import ToWandb


def check_sinks(config: MonitorConfig) -> None:
    """See that the packages are there which the configuration asks for.

    Raises:
        UserError: one is not.
    """
    for key, package, is_wanted in (
        ("monitor.prometheus_port", "prometheus_client", config.prometheus_port is not None),
        ("monitor.wandb", "wandb", config.wandb is not None),
        ("monitor.mlflow", "mlflow", config.mlflow is not None),
    ):
        if is_wanted and importlib.util.find_spec(package) is None:
            raise UserError(key, f"the package {package} is not installed", "", f"pip install {package}, or {key}=null")


def open_sinks(config: MonitorConfig, start: RunStart) -> list[Sink]:
    """Open all that the configuration names, for rank 0 alone.

    Raises:
        UserError: Prometheus' port is in use, or a tracker refuses the run.
    """
    sinks: list[Sink] = []
    try:
        sinks.append(ToJsonl(start))
        if config.tensorboard:
            sinks.append(ToTensorboard(start))
        if config.prometheus_port is not None:
            sinks.append(ToPrometheus(config.prometheus_port))
        if config.wandb is not None:
            with _refusals_of("monitor.wandb"):
                sinks.append(ToWandb(config.wandb, start))
        if config.mlflow is not None:
            with _refusals_of("monitor.mlflow"):
                sinks.append(ToMlflow(config.mlflow, start))
    except BaseException:
        for sink in sinks:
            sink.close(is_failed=True)
        raise
    return sinks


@contextmanager
def _refusals_of(key: str) -> Iterator[None]:
    """A tracker that cannot be reached or does not know the user is a mistake while the run has not begun."""
    try:
        yield
    except Exception as error:  # each tracker has its own kinds
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(key, first_line, "", f"mend it, or set {key}=null") from error
