"""What is trained, on one rank: backbone and head, their optimizers, the moving average; as a checkpoint holds it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import checkpoint
from pipeline.engine.backend import Backend
from pipeline.engine.backends import build_backend, prepare_for_training
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ema import Ema
from pipeline.engine.freezing import Freezing
from pipeline.engine.gradients import GradientPass
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.engine.initial import open_initial
from pipeline.engine.run import RunPlan
from pipeline.engine.state import LOSS_SCALE_PREFIX, adopt_backbone_optimizer, head_tensors, training_tensors
from pipeline.engine.teacher import load_teacher
from pipeline.model.backbones import build_backbone
from pipeline.model.separate_heads import build_head_over
from pipeline.progress import PROGRESS, Stage


class Learner:
    """The state of training but for its position. Construction and all methods are collective on all ranks.

    Args:
        plan: of the run; a checkpoint that it goes on from is read, weights that it begins from are taken.
        device: of this rank.
    """

    def __init__(self, plan: RunPlan, device: torch.device) -> None:
        config = plan.config
        self._plan, self._device = plan, device
        model = build_backbone(config.backbone, plan.crop_px, config.seed)
        initial = None
        self.origin = ""
        """Which weights it began from, in a line."""
        if config.init_from is not None and plan.resume is None:
            initial = open_initial(config.init_from, model, plan.label_map)
            self.origin = initial.fill_backbone(model)
        prepare_for_training(model, config.training)
        self.backend: Backend = build_backend(config, model, device)
        self.freezing = Freezing(config.freeze, config.thaw, model)
        self._frozen: frozenset[str] = frozenset()
        self.statistics = RunningStatistics(model)
        self.head = build_head_over(config.head, plan.split.label_spaces, config.backbone.embedding_dim, config.seed)
        self._mesh = checkpoint.rank_mesh(device)
        teacher: nn.Module | None = None
        if plan.teacher is not None:
            loaded = load_teacher(plan.teacher, device, self._mesh)
            self.head.attach_teacher(loaded.teacher)
            teacher = loaded.module
        self.head.to(device)
        self.head_optimizer = HeadOptimizer(config.optim.head, self.head)
        if initial is not None:
            self.origin += initial.fill_head(head_tensors(self.head, self._mesh))
        self._ema = Ema(config.ema, self.backend.model.state_dict()) if config.ema else None
        self.gradients = GradientPass(self.backend, self.statistics, self.head, teacher, config.seed)
        if not self.follow_freezing(0 if plan.resume is None else plan.resume.info.samples):
            self._settle()
        # parameters that rest have no step that would lay it out, and yet stand in checkpoints
        self.backend.prime_optimizer()
        if plan.resume is not None:
            self.load(plan.resume.path, plan.resume.info)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name: see `training_tensors`."""
        tensors = training_tensors(self.backend, self.head, self.head_optimizer, self._mesh)
        return tensors if self._ema is None else tensors | self._ema.tensors()

    def load(self, path: Path, info: checkpoint.CheckpointInfo) -> None:
        """Take up a checkpoint's state.

        Raises:
            UserError: it is damaged, or of another model.
        """
        tensors = self.tensors()
        if info.config["training"]["precision"] != "fp16":  # this run's loss scale begins here
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(LOSS_SCALE_PREFIX)}
        begins_average = self._ema is not None and not checkpoint.has_ema(path)
        if begins_average:
            tensors = {name: t for name, t in tensors.items() if not name.startswith(checkpoint.EMA_PREFIX)}
        checkpoint.load_into(path, tensors)
        adopt_backbone_optimizer(self.backend, tensors)
        if self._ema is not None and begins_average:
            self._ema.restart(self.backend.model.state_dict())

    def follow_freezing(self, samples: int) -> bool:
        """Let the right parameters rest at a position; whether they are others than before."""
        epoch = self._plan.epoch(samples)
        self.freezing.hold_statistics(epoch)
        frozen = self.freezing.at(epoch)
        if frozen == self._frozen:
            return False
        self.backend.freeze(frozen)
        self._frozen = frozen
        self._settle()
        return True

    def update(self, factor: float, backbone_norm: Tensor, head_norm: Tensor, step: int) -> dict[str, float]:
        """Do the optimizer update that the gradients ask for.

        Args:
            factor: on both optimizers' rates.
            backbone_norm: of the gradient, a scalar, the same on all ranks.
            head_norm: likewise.
            step: how many updates there will be then.

        Returns:
            The learning rates, for the record.
        """
        config = self._plan.config.optim
        rates = {"lr": factor * config.backbone.lr, "lr_head": factor * config.head.lr}
        with PROGRESS.during(Stage.OPTIMIZER):
            self.backend.step(rates["lr"], backbone_norm, config.clip_backbone_norm)
            self.head_optimizer.step(rates["lr_head"], head_norm, config.clip_head_norm)
        if self._ema is not None:
            self._ema.update(self.backend.model.state_dict(), step)
        return rates

    def forget_gradients(self) -> None:
        """Leave the weights as they are."""
        self.backend.zero_grad()
        self.head_optimizer.zero_grad()

    def forget_step(self) -> None:
        """Leave no trace of a step's passes."""
        self.statistics.discard_step()
        self.forget_gradients()

    def averaged(self) -> AbstractContextManager[None]:
        """Around what is to see the moving average in the backbone, where there is one."""
        return nullcontext() if self._ema is None else self._ema.in_place_of(self.backend.model.state_dict())

    def _settle(self) -> None:
        """One dummy forward and backward. DDP lays its buckets out anew after the first backward pass, which changes
        the order of sums; without this a resumed run would differ from the run that never stopped."""
        model = self.backend.model
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        crop_px, local_batch = self._plan.crop_px, self._plan.config.training.local_batch
        images = torch.zeros(local_batch, crop_px, crop_px, 3, dtype=torch.uint8, device=self._device)
        with self.backend.accumulate(is_last=True):
            embeddings = self.backend.forward(images.permute(0, 3, 1, 2))
            self.backend.backward(embeddings, torch.zeros_like(embeddings))
        self.backend.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
