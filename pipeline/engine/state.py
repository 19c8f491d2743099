"""The tensors of a training run, by the names they bear in its checkpoints; and a checkpoint to begin a run from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pipeline import checkpoint, dist
from pipeline.checkpoint_writer import save as save_checkpoint
from pipeline.config.errors import UserError
from pipeline.engine.backend import Backend
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.engine.run import RunPlan
from pipeline.model.backbones import build_backbone
from pipeline.model.head import Head
from pipeline.model.separate_heads import build_head_over

HEAD_OPTIMIZER_PREFIX = "head_optimizer/"
BACKBONE_OPTIMIZER_PREFIX = "backbone_optimizer/"
LOSS_SCALE_PREFIX = "loss_scale/"


def training_tensors(
    backend: Backend, head: Head, head_optimizer: HeadOptimizer, mesh: DeviceMesh | None
) -> dict[str, Tensor]:
    """All tensors of a checkpoint: replicated ones, and the head's row-sharded ones as DTensors over `mesh`.

    They are live, but for the backbone's optimizer where its state is divided among ranks: then this is collective, and
    after reading into them `adopt_backbone_optimizer` is due.
    """
    tensors = {checkpoint.BACKBONE_PREFIX + name: t for name, t in backend.model.state_dict().items()}
    tensors |= {BACKBONE_OPTIMIZER_PREFIX + name: t for name, t in backend.optimizer_tensors().items()}
    if backend.loss_scale is not None:
        tensors |= {LOSS_SCALE_PREFIX + name: t for name, t in backend.loss_scale.tensors().items()}
    tensors |= head_tensors(head, mesh)
    sharded = head.sharded_tensors()
    for name, tensor in head_optimizer.tensors().items():
        owner = name.rpartition("/")[0]
        if owner in sharded and tensor.ndim:
            tensor = checkpoint.shard_rows(tensor, sharded[owner][1], mesh)
        tensors[HEAD_OPTIMIZER_PREFIX + name] = tensor
    return tensors


def adopt_backbone_optimizer(backend: Backend, tensors: Mapping[str, Tensor]) -> None:
    """Go on from what was read into the tensors that `training_tensors` gave. Collective on all ranks."""
    prefix = BACKBONE_OPTIMIZER_PREFIX
    backend.adopt_loaded({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})


def head_tensors(head: Head, mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """A head's tensors of a checkpoint, live: replicated ones, and the row-sharded ones as DTensors over `mesh`."""
    tensors = dict(head.state_dict())
    for name, (tensor, num_rows) in head.sharded_tensors().items():
        tensors[name] = checkpoint.shard_rows(tensor.detach(), num_rows, mesh)
    return {checkpoint.HEAD_PREFIX + name: t for name, t in tensors.items()}


def row_sharded(tensors: Mapping[str, Tensor], head: Head) -> Iterator[tuple[str, str]]:
    """Of a checkpoint's tensors, those cut by rows: their names, each with the head's tensor that it belongs to."""
    sharded = head.sharded_tensors()
    for name, tensor in tensors.items():
        if name.startswith(HEAD_OPTIMIZER_PREFIX):
            owner = name.removeprefix(HEAD_OPTIMIZER_PREFIX).rpartition("/")[0]
        else:
            owner = name.removeprefix(checkpoint.HEAD_PREFIX)
        if owner in sharded and tensor.ndim:
            yield name, owner


@dataclass(frozen=True)
class Start:
    """What a planned run begins with, whole and on the CPU: to be changed in place, then saved."""

    plan: RunPlan
    model: nn.Module
    """The backbone, whose parameters are among `tensors`."""
    head: Head
    tensors: dict[str, Tensor]
    """Initial values by their names in checkpoints; the optimizers' state is that before the first step."""

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Put values in place of initial ones.

        Raises:
            UserError: a value has no place in this run, or another shape.
        """
        for name, value in values.items():
            place = self.tensors.get(name)
            if place is None:
                raise UserError(name, "has no place in this run", remedy="keep head and optimizers of the same kind")
            if place.shape != value.shape:
                raise UserError(name, f"has shape {tuple(value.shape)}", f"{tuple(place.shape)}")
            with torch.no_grad():
                place.copy_(value)

    def save(self, origin: Mapping[str, str]) -> Path:
        """Write the checkpoint of step 0 that the run then goes on from; gives its directory.

        `origin` is recorded among the versions: where the values come from.
        """
        plan = self.plan
        info = plan.checkpoint_info(0, 0, 0, versions=checkpoint.versions() | dict(origin))
        return save_checkpoint(plan.checkpoints, self.tensors, info, plan.config.checkpoint.keep)


def prepare_start(plan: RunPlan) -> Start:
    """Lay out a run that has not begun. A single process's affair, whatever the number of ranks that will train.

    Raises:
        UserError: the run has a checkpoint already.
    """
    assert dist.world_size() == 1
    if plan.resume is not None:
        raise UserError(plan.config.output, "a run stands there already", "an empty place", "choose another output")
    config = plan.config
    model = build_backbone(config.backbone, plan.crop_px, config.seed)
    backend = DDPBackend(model, config.optim.backbone, config.training.precision, torch.device("cpu"))
    head = build_head_over(config.head, plan.split.label_spaces, config.backbone.embedding_dim, config.seed)
    head_optimizer = HeadOptimizer(config.optim.head, head)
    backend.prime_optimizer()
    tensors = training_tensors(backend, head, head_optimizer, mesh=None)
    return Start(plan, model, head, tensors)
