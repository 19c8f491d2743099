"""What a run is, decided before any process group exists: its data, its length, and the checkpoint it goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline import checkpoint
from pipeline.config.errors import UserError
from pipeline.config.schema import Config
from pipeline.data.manifest import Dataset, SplitIndex, label_map_sha256, open_dataset
from pipeline.data.step_plan import check_batches

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
# a resume with another value of these would train another model, or see samples twice
FIXED_KEYS = ("backbone", "head.kind", "seed", "data.split")


@dataclass(frozen=True)
class Resume:
    """The checkpoint to go on from."""

    path: Path
    info: checkpoint.CheckpointInfo
    changes: list[str]
    """Configuration keys whose value differs from the checkpoint's, as `key: old → new`."""


@dataclass(frozen=True)
class RunPlan:
    """Everything a rank needs to know before it starts."""

    config: Config
    dataset: Dataset
    split: SplitIndex
    label_map: str
    """sha256 of the identities in the order of their labels."""
    total_samples: int
    """Length of the run: a whole number of global batches."""
    resume: Resume | None

    @property
    def checkpoints(self) -> Path:
        return self.config.output / CHECKPOINTS

    @property
    def crop_px(self) -> int:
        return self.dataset.info.crop.size_px


def plan_run(config: Config) -> RunPlan:
    """Check a configuration against the world: accelerator, data set, batch, checkpoint. Not collective.

    Raises:
        UserError: anything the user can mend, before a single process is started.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device", "cuda is not available here", "a GPU", "set device=cpu")
    dataset = open_dataset(config.data.path)
    split = dataset.split(config.data.split)
    training = config.training
    check_batches(len(split), training.global_batch, training.local_batch)
    label_map = label_map_sha256(split.identities())
    num_steps = max(1, round(training.epochs * len(split) / training.global_batch))
    found = checkpoint.latest_checkpoint(config.output / CHECKPOINTS)
    resume = None
    if found is not None:
        info = checkpoint.read_info(found)
        resume = Resume(found, info, _check_resume(found, info, config, dataset, label_map))
    return RunPlan(config, dataset, split, label_map, num_steps * training.global_batch, resume)


def write_config(config: Config) -> None:
    """Leave the resolved configuration in the run's directory."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (config.output / CONFIG_FILE).write_text(text)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested mapping under dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_resume(
    path: Path, info: checkpoint.CheckpointInfo, config: Config, dataset: Dataset, label_map: str
) -> list[str]:
    remedy = "start another run with output=DIR, or go back to the old value"
    old, new = dict(flatten(info.config)), dict(flatten(config.model_dump(mode="json")))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    for key in changed:
        if any(key == fixed or key.startswith(fixed + ".") for fixed in FIXED_KEYS):
            raise UserError(key, f"{new.get(key)!r}, but {path} was trained with {old.get(key)!r}", remedy=remedy)
    if label_map != info.label_map_sha256:
        raise UserError(
            dataset.root,
            f"its label map does not match the checkpoint's ({path})",
            f"the {info.num_classes} identities it was trained on",
            "start another run with output=DIR",
        )
    if dataset.info.digest != info.dataset["digest"]:
        raise UserError(
            dataset.root,
            f"its digest changed since the checkpoint ({dataset.info.digest[:12]}…)",
            f"{info.dataset['digest'][:12]}…",
            "restore the data set, or start another run with output=DIR",
        )
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in changed if key != "output"]
