"""What a run is, decided before any process group exists: its data, its length, and the checkpoint it goes on from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pipeline import checkpoint, dist
from pipeline.atomic_write import write_atomically
from pipeline.config.decoder import DaliDecoder
from pipeline.config.errors import UserError
from pipeline.config.heads import with_teacher
from pipeline.config.load import flatten, validate_config
from pipeline.config.location import nearest_existing
from pipeline.config.order import IdentityBalancedConfig
from pipeline.config.schema import Config
from pipeline.data.balanced_order import BalancedPart
from pipeline.data.dataset_format import label_map_sha256
from pipeline.data.manifest import SplitIndex
from pipeline.data.mined_list import MinedList, read_list
from pipeline.data.mined_order import MiningLayout
from pipeline.data.orders import balanced_parts, build_order
from pipeline.data.step_plan import EpochOrder, check_batches
from pipeline.data.training_data import TrainingSet, open_training_data
from pipeline.engine.freezing import Freezing, with_stages
from pipeline.engine.initial import open_initial
from pipeline.engine.teacher import TeacherPlan, plan_teacher
from pipeline.engine.validation import ValidationPairs, open_validation
from pipeline.model.backbones import build_without_memory
from pipeline.monitor.sinks import check_sinks

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
# a resume with another value of these would train another model, or see samples twice
FIXED_KEYS = ("backbone", "head.kind", "seed", "data.split", "data.order", "data.mix.labels", "mining")
# the same of any set of a mix; where it stands is free, its digest says whether it is the same
FIXED_KEY_OF_SET = re.compile(r"data\.mix\.sets\.\w+\.(split|weight)")
KEYS_WITHOUT_EFFECT = (
    *("data.path", "data.cache", "data.num_threads", "data.prefetch_steps", "data.max_bad_share"),
    *("checkpoint", "monitor", "watchdog", "profile", "validation.sets", "init_from"),
)
PATH_OF_SET = re.compile(r"data\.mix\.sets\.\w+\.path")
# P × K batches are planned anew over what the epoch has not seen
FREE_KEYS_OF_BALANCE = tuple(f"data.order.{name}" for name in ("num_identities", "photos_per_identity", "min_photos"))
# with mining, which samples were seen follows from the number of steps
FIXED_KEYS_OF_MINING = ("training.global_batch",)


@dataclass(frozen=True)
class Resume:
    """The checkpoint to go on from."""

    path: Path
    info: checkpoint.CheckpointInfo
    changes: list[str]
    """Configuration keys whose value differs from the checkpoint's, as `key: old → new`."""
    mined: MinedList | None
    """The list that was in use."""


@dataclass(frozen=True)
class RunPlan:
    """Everything a rank needs to know before it starts."""

    config: Config
    sets: tuple[TrainingSet, ...]
    """The data sets; one where there is no mix."""
    split: SplitIndex
    """The samples of all of them."""
    label_map: str
    """sha256 of the identities in the order of their labels."""
    total_samples: int
    """Length of the run: a whole number of global batches."""
    order: EpochOrder
    """Of the samples; with mining, of those that are not mined."""
    order_parts: tuple[BalancedPart, ...]
    """How an identity-balanced order is cut."""
    resume: Resume | None
    teacher: TeacherPlan | None
    """Where the head learns from one."""
    validation: Mapping[str, ValidationPairs]
    """What is scored while training, by name; empty for nothing."""

    @property
    def checkpoints(self) -> Path:
        return self.config.output / CHECKPOINTS

    @property
    def crop_px(self) -> int:
        return self.sets[0].dataset.info.crop.size_px

    def checkpoint_info(self, step: int, samples: int, num_bad_samples: int, **more: Any) -> checkpoint.CheckpointInfo:
        """What a checkpoint of this run at a position belongs to; `more` are fields that have a default there."""
        return checkpoint.CheckpointInfo(
            step=step,
            samples=samples,
            num_bad_samples=num_bad_samples,
            world_size=dist.world_size(),
            num_classes=self.split.num_labels,
            label_map_sha256=self.label_map,
            split=self.split.split,
            config=self.config.model_dump(mode="json"),
            dataset=self.sets[0].dataset.info.model_dump(mode="json"),
            mixed=[
                checkpoint.MixedSetInfo(name=one.name, split=one.split.split, digest=one.split.digest)
                for one in self.sets
                if one.name
            ],
            **{"versions": checkpoint.versions(), **more},
        )

    @property
    def mining(self) -> MiningLayout | None:
        """How batches are filled where hard examples are mined."""
        config = self.config.mining
        return None if config is None else MiningLayout.create(config, self.config.training.global_batch)

    def epoch(self, samples: int) -> float:
        """Epochs that `samples` slots of the stream make, mined ones not counted."""
        return self.order.epoch(samples if self.mining is None else self.mining.plain_position(samples))


def plan_run(config: Config) -> RunPlan:
    """Check a configuration against the world: accelerator, data set, batch, teacher, checkpoint. Not collective.

    Raises:
        UserError: anything the user can mend, before a single process is started.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device", "cuda is not available here", "a GPU", "set device=cpu")
    data = open_training_data(config.data)
    split = data.split
    _check_output(config.output)
    _check_decoder(config)
    check_sinks(config.monitor)
    model = build_without_memory(config.backbone, data.crop.size_px)  # checks the network
    config = with_stages(config, model, data.crop.size_px)
    Freezing(config.freeze, config.thaw, model)  # checks the patterns
    training = config.training
    check_batches(len(split), training.global_batch, training.local_batch)
    parts = balanced_parts(config.data.order, training.global_batch, (), 0)
    order = build_order(config.data.order, split, config.seed, parts)
    label_map = label_map_sha256(split.identities())
    teacher = plan_teacher(config, data.crop, label_map)
    validation = open_validation(config.validation, data.crop)
    if teacher is not None:
        # a teacher that is trained further must not change what this run learns when it is resumed
        config = config.model_copy(update={"head": with_teacher(config.head, teacher.path)})
    total_samples = _total_samples(config, split, order, parts)
    plan = refresh_resume(
        RunPlan(config, data.sets, split, label_map, total_samples, order, parts, None, teacher, validation)
    )
    if config.init_from is not None and plan.resume is None:
        open_initial(config.init_from, model, label_map)  # checks that it fits
    return plan


def refresh_resume(plan: RunPlan) -> RunPlan:
    """The same plan, going on from the newest checkpoint that stands there now.

    Raises:
        UserError: the checkpoint is of another model, data set or order, or its mined list is gone.
    """
    found = checkpoint.latest_checkpoint(plan.checkpoints)
    if found is None:
        return replace(plan, resume=None)
    info = checkpoint.read_info(found)
    config, split = plan.config, plan.split
    changes = _check_resume(found, info, plan)
    listed = info.mined_list
    mined = None if listed is None else read_list(plan.config.output / listed.file, listed.sha256)
    parts = balanced_parts(config.data.order, config.training.global_batch, info.order_parts, info.samples)
    if parts != plan.order_parts:
        order = build_order(config.data.order, split, config.seed, parts)
        total_samples = max(info.samples, _total_samples(config, split, order, parts))
        plan = replace(plan, order=order, order_parts=parts, total_samples=total_samples)
    return replace(plan, resume=Resume(found, info, changes, mined))


def write_config(config: Config) -> None:
    """Leave the resolved configuration in the run's directory."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_atomically(config.output / CONFIG_FILE, text.encode())


def is_under(key: str, sections: Iterable[str]) -> bool:
    """Whether a dotted key is one of some, or in a section that is."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _check_output(output: Path) -> None:
    existing = nearest_existing(output)
    if not existing.is_dir():
        raise UserError(output, f"{existing} is a file", "a directory, or nothing yet", "set output=DIR")
    if not os.access(existing, os.W_OK):
        raise UserError(output, f"{existing} is not writable", remedy="set output=DIR")


def _check_decoder(config: Config) -> None:
    decoder = config.data.decoder
    if isinstance(decoder, DaliDecoder) and decoder.device == "gpu" and config.device != "cuda":
        raise UserError("data.decoder.device", "gpu, while device is cpu", "device=cuda", "or data.decoder.device=cpu")


def _total_samples(config: Config, split: SplitIndex, order: EpochOrder, parts: Sequence[BalancedPart]) -> int:
    """Length of the run, mined slots included.

    Raises:
        UserError: a run that ends before its first mining round, or people without a second photo.
    """
    training, plain_samples = config.training, order.position_at(config.training.epochs)
    if config.mining is None:
        start = parts[-1].start if parts else 0
        num_steps = max(0 if start else 1, round((plain_samples - start) / training.global_batch))
        return start + num_steps * training.global_batch
    layout = MiningLayout.create(config.mining, training.global_batch)
    total = layout.num_steps(plain_samples) * training.global_batch
    if layout.start >= total:
        raise UserError(
            "mining.start_step",
            f"{config.mining.start_step}, but the run has {total // training.global_batch} steps",
            "a step before the last",
            "set an earlier mining.start_step or more training.epochs",
        )
    num_people = int((np.bincount(split.label) >= 2).sum())
    if num_people < 2:
        raise UserError(
            split.name, f"{num_people} of its people have two photos or more", "two at least", "set mining=null"
        )
    return total


def _check_resume(path: Path, info: checkpoint.CheckpointInfo, plan: RunPlan) -> list[str]:
    config = plan.config
    remedy = "start another run with output=DIR, or go back to the old value"
    # a run from before there was a choice has the default of what could not be chosen
    old = dict(flatten(validate_config(info.config, where=str(path)).model_dump(mode="json")))
    new = dict(flatten(config.model_dump(mode="json")))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    fixed_keys = FIXED_KEYS if config.mining is None else FIXED_KEYS + FIXED_KEYS_OF_MINING
    is_balanced = old["data.order.kind"] == "identity_balanced" and isinstance(
        config.data.order, IdentityBalancedConfig
    )
    free_keys = FREE_KEYS_OF_BALANCE if is_balanced else ()
    for key in sorted(changed, key=lambda key: (not key.endswith(".kind"), key)):
        is_fixed = is_under(key, fixed_keys) and key not in free_keys
        if is_fixed or FIXED_KEY_OF_SET.fullmatch(key) or _is_another_model(key, old.get(key), new.get(key)):
            raise UserError(key, f"{new.get(key)!r}, but {path} was trained with {old.get(key)!r}", remedy=remedy)
    if plan.label_map != info.label_map_sha256:
        raise UserError(
            plan.split.name,
            f"its label map does not match the checkpoint's ({path})",
            f"the {info.num_classes} identities it was trained on",
            "start another run with output=DIR",
        )
    for one, (_, digest) in zip(plan.sets, info.trained_on, strict=True):  # as many, or the label map were another
        if one.split.digest != digest:
            raise UserError(
                one.dataset.root,
                f"its digest changed since the checkpoint ({one.split.digest[:12]}…)",
                f"{digest[:12]}…",
                "restore the data set, or start another run with output=DIR",
            )
    return [f"{key}: {old.get(key)} → {new.get(key)} ({_what_it_matters(key)})" for key in changed if key != "output"]


def _what_it_matters(key: str) -> str:
    """What another value of a key does to a run that is resumed."""
    if is_under(key, KEYS_WITHOUT_EFFECT) or PATH_OF_SET.fullmatch(key):
        return "no effect on what is learned"
    if key in ("device", "training.local_batch") or key.startswith("engine."):
        return "the same up to rounding and the groups of batch norm"
    return "changes what is learned from here on"


def _is_another_model(key: str, old: object, new: object) -> bool:
    """Whether a key of a sum's parts, or of a teacher, changes what a run learns or from whom."""
    if key.endswith("teacher.checkpoint"):
        return Path(str(old)).name != Path(str(new)).name  # the same step, moved to another place, is the same teacher
    return key.endswith(".head.kind") and None not in (old, new)
