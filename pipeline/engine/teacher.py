"""The frozen model that a head learns from: found and checked before a run starts, loaded on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pipeline import checkpoint, dist
from pipeline.config.errors import UserError
from pipeline.config.heads import (
    DistillationConfig,
    HarmonicConfig,
    HeadConfig,
    MarginSoftmaxConfig,
    SingleHead,
    single_heads,
)
from pipeline.config.load import validate_config
from pipeline.config.schema import Config
from pipeline.config.teacher_heads import LogitTarget
from pipeline.data.dataset_format import CropInfo
from pipeline.model.head_sum import SumHead
from pipeline.model.margins.base import build_margin
from pipeline.model.teacher import Teacher, TeacherClasses


@dataclass(frozen=True)
class TeacherPlan:
    """A teacher that is there and fits."""

    path: Path
    """One `step-N`."""
    info: checkpoint.CheckpointInfo
    config: Config
    """What it was trained with."""
    needs_classes: bool
    """Whether a head asks for its class centres."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher on this rank's device."""

    module: nn.Module
    """In eval mode and frozen: uint8 [B, 3, H, W] RGB to float32 [B, D']."""
    teacher: Teacher
    """What heads hear of it."""


def plan_teacher(config: Config, crop: CropInfo, label_map: str) -> TeacherPlan | None:
    """Find the teacher that a configuration's head names, and check that it fits; None where none is named.

    Not collective.

    Args:
        config: of the run to come.
        crop: geometry of the crops that both models will see.
        label_map: sha256 of the identities in the order of their labels.

    Raises:
        UserError: no checkpoint there, another crop size or template, another dimension where embeddings are compared
            as they are, or another label map where class centres are used.
    """
    students = {
        name: head
        for name, head in single_heads(config.head).items()
        if isinstance(head, DistillationConfig | HarmonicConfig)
    }
    if not students:
        return None
    path = checkpoint.find_checkpoint(next(iter(students.values())).teacher.checkpoint)
    info = checkpoint.read_info(path)
    trained = validate_config(info.config, where=str(path / checkpoint.DESCRIPTION))
    _check_crops(path, CropInfo.model_validate(info.dataset["crop"]), crop)
    plan = TeacherPlan(path, info, trained, any(_needs_classes(head) for head in students.values()))
    dims = config.backbone.embedding_dim, trained.backbone.embedding_dim
    for name, head in students.items():
        if isinstance(head, HarmonicConfig) and dims[0] != dims[1]:
            raise UserError(
                "backbone.embedding_dim",
                f"{dims[0]}, but the teacher of {_key(name)} ({path}) has {dims[1]}",
                "the same: a harmonic head compares embeddings of both",
                f"set backbone.embedding_dim={dims[1]}",
            )
        if _needs_classes(head):
            if info.label_map_sha256 != label_map:
                raise UserError(
                    f"{_key(name)}.teacher.checkpoint",
                    f"{path} was trained on other identities ({info.num_classes:,} of them)",
                    "those of data.path, with the same labels: its class centres are used",
                    "learn its embeddings instead: target.kind=cosine or l2",
                )
            if trained.data.mix is not None and trained.data.mix.labels == "separate":
                raise UserError(
                    path,
                    "its label spaces are separate",
                    "one set of class centres, which say what the teacher sees",
                    "learn its embeddings instead: target.kind=cosine or l2",
                )
            _softmax_of(trained.head, path)
    return plan


def load_teacher(plan: TeacherPlan, device: torch.device, mesh: DeviceMesh | None) -> LoadedTeacher:
    """Load a teacher: its backbone whole, of its class centres, where needed, this rank's rows. Collective.

    Raises:
        UserError: its tensors are damaged, or it has several centres a class.
    """
    loaded = checkpoint.load_backbone(plan.path, device)
    classes = _load_classes(plan, device, mesh) if plan.needs_classes else None
    return LoadedTeacher(loaded.module.requires_grad_(False), Teacher(loaded.embedding_dim, classes))


def _load_classes(plan: TeacherPlan, device: torch.device, mesh: DeviceMesh | None) -> TeacherClasses:
    part, config = _softmax_of(plan.config.head, plan.path)
    prefix = f"head/{SumHead.PREFIX}{part}." if part else "head/"
    num_classes = plan.info.num_classes
    first, end = dist.partition(num_classes, dist.rank(), dist.world_size())
    margin = build_margin(config.margin, num_classes).to(device).eval().requires_grad_(False)
    centres = torch.empty(end - first, plan.config.backbone.embedding_dim, device=device)
    bias = torch.empty(end - first, device=device) if margin.has_bias else None
    tensors: dict[str, Tensor] = {f"{prefix}class_centres": checkpoint.shard_rows(centres, num_classes, mesh)}
    if bias is not None:
        tensors[f"{prefix}bias"] = checkpoint.shard_rows(bias, num_classes, mesh)
    tensors |= {f"{prefix}margin.{name}": value for name, value in margin.state_dict().items()}
    checkpoint.load_into(plan.path, tensors)
    return TeacherClasses(margin, centres, bias)


def _softmax_of(head: HeadConfig, path: Path) -> tuple[str, MarginSoftmaxConfig]:
    """The margin softmax among a teacher's heads, and the name of its part."""
    found = [(name, part) for name, part in single_heads(head).items() if isinstance(part, MarginSoftmaxConfig)]
    if len(found) != 1:
        raise UserError(
            path,
            f"its head has {len(found)} margin softmaxes",
            "one, whose class centres say what the teacher sees",
            "learn its embeddings instead: target.kind=cosine or l2",
        )
    return found[0]


def _check_crops(path: Path, theirs: CropInfo, ours: CropInfo) -> None:
    remedy = "both models see the same crops: shard the photos again, or choose another teacher"
    if difference := theirs.difference_from(ours):
        expected = "the data set's" if theirs.size_px == ours.size_px else f"{ours.size_px} px"
        raise UserError(path, f"a teacher for {difference}", expected, remedy)


def _needs_classes(head: SingleHead) -> bool:
    return isinstance(head, DistillationConfig) and isinstance(head.target, LogitTarget)


def _key(part: str) -> str:
    """The dotted key of a head of `single_heads`."""
    return f"head.parts.{part}.head" if part else "head"
