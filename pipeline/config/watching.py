"""The configuration sections of what watches a run; docs/operations.md says what they do."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class WatchdogConfig(Section):
    """What becomes of a rank that hangs or is slow."""

    timeout_s: float = Field(600.0, gt=0)
    """Longest that a step may take. After it every rank writes its stacks to `stacks-rank-N.txt`, and the run ends with
    a message that names the ranks which hold up the others."""
    long_timeout_s: float = Field(3600.0, gt=0)
    """The same for the first step with all that comes before it, a mining round, a validation and a checkpoint."""
    slow_rank_factor: float = Field(1.5, gt=1)
    """A rank is slow when its own part of a step, without collectives, takes so many times the median rank's."""
    slow_rank_after_s: float = Field(60.0, ge=0)
    """How long a rank has to be slow without a break before a line says so."""


class WandbConfig(Section):
    """Weights & Biases; needs the `wandb` package."""

    project: str
    """Name of the project."""
    entity: str | None = None
    """User or team; null for the account's own."""
    name: str | None = None
    """Name of the run; null for one that is made up there."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


class MlflowConfig(Section):
    """MLflow; needs the `mlflow` package."""

    tracking_uri: str
    """Server or directory, for example `http://mlflow:5000`."""
    experiment: str
    """Name of the experiment."""
    name: str | None = None
    """Name of the run; null for one that is made up there."""


class MonitorConfig(Section):
    """What a run writes about itself."""

    every_steps: int = Field(10, ge=1)
    """Distance between two lines of `metrics.jsonl`."""
    tensorboard: bool = True
    """Write TensorBoard events beside it."""
    prometheus_port: int | None = Field(None, ge=0, le=65535)
    """Port on which rank 0 shows the newest metrics to Prometheus; 0 for any free one, null for none."""
    wandb: WandbConfig | None = None
    """Send metrics to Weights & Biases; null for no."""
    mlflow: MlflowConfig | None = None
    """Send metrics to MLflow; null for no."""


class ProfileConfig(Section):
    """A torch profiler trace of some steps."""

    start_step: int = Field(10, ge=1)
    """First step to trace, counted from 1; the first ones of a process are not like the others."""
    num_steps: int = Field(3, ge=1)
    """How many steps to trace."""
