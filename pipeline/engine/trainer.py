"""The training loop: global batches in, a trained backbone and class centres out."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import checkpoint, dist
from pipeline.config.errors import UserError, report_status
from pipeline.data.loader import StepBatch
from pipeline.data.reader import WITHDRAWN, BadSample, allowed_bad_samples
from pipeline.engine import optim
from pipeline.engine.backend import Backend
from pipeline.engine.batch_norm import RunningStatistics
from pipeline.engine.ddp import DDPBackend
from pipeline.engine.ema import Ema
from pipeline.engine.freezing import Freezing
from pipeline.engine.gradients import GradientPass
from pipeline.engine.head_optim import HeadOptimizer
from pipeline.engine.initial import open_initial
from pipeline.engine.lock import exclusive, leave_with_launcher
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.run import RunPlan, refresh_resume, write_config
from pipeline.engine.state import head_tensors, training_tensors
from pipeline.engine.stream import Stream
from pipeline.engine.teacher import load_teacher
from pipeline.model.backbones import build_backbone
from pipeline.model.head import build_head
from pipeline.monitor import Monitor

logger = logging.getLogger(__name__)

BAD_SAMPLES_FILE = "bad_samples.jsonl"


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    step: int
    samples: int
    is_finished: bool
    """False when a signal ended it early; its checkpoint is saved either way."""


def train(plan: RunPlan) -> TrainResult:
    """Train as planned, from scratch or from the newest checkpoint. Collective on all ranks."""
    leave_with_launcher()
    if plan.config.device == "cpu":
        keep_freed_memory()
    device = dist.initialise(plan.config.device)
    try:
        with exclusive(plan.config.output):
            # the run that held the lock until now may have saved a later checkpoint than the one planned for
            return Trainer(refresh_resume(plan), device).run()
    finally:
        dist.shutdown()


class Trainer:
    """One run on one rank. All methods are collective."""

    def __init__(self, plan: RunPlan, device: torch.device) -> None:
        config = plan.config
        self.plan, self.config, self.device = plan, config, device
        self.step = 0
        self.samples = 0
        self._num_bad_samples = 0
        self._num_withdrawn = 0  # in this step
        self._stop_asked = False
        model = build_backbone(config.backbone, plan.crop_px, config.seed)
        initial = None
        self._origin = ""
        if config.init_from is not None and plan.resume is None:
            initial = open_initial(config.init_from, model, plan.label_map)
            self._origin = initial.fill_backbone(model)
        self.backend: Backend = DDPBackend(model, config.optim.backbone, config.training.precision, device)
        self._freezing = Freezing(config.freeze, config.thaw, model)
        self._frozen: frozenset[str] = frozenset()
        self.statistics = RunningStatistics(model)
        self.head = build_head(config.head, plan.split.num_labels, config.backbone.embedding_dim, config.seed)
        self.mesh = checkpoint.rank_mesh(device)
        teacher: nn.Module | None = None
        if plan.teacher is not None:
            loaded = load_teacher(plan.teacher, device, self.mesh)
            self.head.attach_teacher(loaded.teacher)
            teacher = loaded.module
        self.head.to(device)
        self.head_optimizer = HeadOptimizer(config.optim.head, self.head)
        if initial is not None:
            self._origin += initial.fill_head(head_tensors(self.head, self.mesh))
        self._ema = Ema(config.ema, self.backend.model.state_dict()) if config.ema else None
        self._stream = Stream(plan, self.backend, device)
        self._pass = GradientPass(self.backend, self.statistics, self.head, teacher, config.seed)
        if not self._follow_freezing(0 if plan.resume is None else plan.resume.info.samples):
            self._settle()
        # parameters that rest have no step that would lay it out, and yet stand in checkpoints
        self.backend.prime_optimizer()
        if plan.resume is not None:
            self._load()

    def run(self) -> TrainResult:
        """Train to the end of the plan or to the first SIGTERM or SIGINT, then save."""
        config, plan = self.config, self.plan
        is_writer = dist.rank() == 0
        if is_writer:
            write_config(config)
            self._trim_bad_samples()
        monitor = Monitor(
            config.output, plan.total_samples, self.samples, self.step, is_writer, config.monitor.tensorboard
        )
        saved_at = self.samples
        batches = self._stream.batches(self.samples, say=monitor.say, is_stop_asked=lambda: self._stop_asked)
        with closing(batches), monitor, self._signals():
            monitor.say(self._opening_line())
            window = _Window()
            for batch in batches:
                values, stop = self._train_step(batch)
                window.add(batch.wait_s, config.training.global_batch)
                is_last = self.samples >= plan.total_samples or stop
                if self.step % config.monitor.every_steps == 0 or is_last or self.step == 1:
                    record = {name: _to_number(value) for name, value in values.items()} | window.close()
                    record |= {"step": self.step, "samples": self.samples}
                    record |= {"epoch": plan.epoch(self.samples), **self._stream.metrics}
                    monitor.record(record)
                    monitor.show(record)
                if self._is_save_due(saved_at) or is_last:
                    self._save()
                    saved_at = self.samples
                if stop:
                    break
            if saved_at != self.samples:  # asked to stop in the middle of a mining round
                self._save()
        is_finished = self.samples >= plan.total_samples
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # each node has a supervisor of its own
            report_status("finished" if is_finished else "preempted", step=self.step, samples=self.samples)
        return TrainResult(self.step, self.samples, is_finished)

    def _train_step(self, batch: StepBatch) -> tuple[dict[str, Tensor | float], bool]:
        """One optimizer update; gives what to report, and whether any rank was asked to stop."""
        config = self.config
        self._follow_freezing(self.samples)
        num_valid, is_stop_asked = self._exchange_counts(batch)
        loss, metrics = self._pass.backward(batch, num_valid, self.step, self.plan.epoch(self.samples))
        backbone_norm = self.backend.gradient_norm()
        head_norm = self.head_optimizer.gradient_norm()
        # the three are the same on all ranks, so all of them stop together
        if not math.isfinite(float(loss + backbone_norm + head_norm)):
            raise UserError(
                f"step {self.step + 1}",
                f"loss {float(loss)}, gradient norms {float(backbone_norm)} (backbone) and {float(head_norm)} (head)",
                "finite numbers",
                "lower optim.backbone.lr or the margin; the newest checkpoint is untouched",
            )
        plan, epoch = self.plan, self.plan.epoch(self.samples)
        total_epochs = plan.epoch(plan.total_samples)
        factor = optim.schedule_factor(config.schedule, epoch, total_epochs, plan.order.epoch_samples)
        lr, head_lr = factor * config.optim.backbone.lr, factor * config.optim.head.lr
        self.backend.step(lr, backbone_norm, config.optim.clip_backbone_norm)
        self.head_optimizer.step(head_lr, head_norm, config.optim.clip_head_norm)
        self.step += 1
        if self._ema is not None:
            self._ema.update(self.backend.model.state_dict(), self.step)
        self.samples = batch.step_position + config.training.global_batch
        values: dict[str, Tensor | float] = {"loss": loss, **metrics, "lr": lr, "lr_head": head_lr}
        values |= {"backbone_grad_norm": backbone_norm, "head_grad_norm": head_norm}
        values["bad_samples"] = self._num_bad_samples
        if len(self.plan.split.withdrawn):
            values["withdrawn"] = self._num_withdrawn
        if self.plan.order_parts:
            values["top_ups"] = batch.num_top_ups
        if config.freeze or config.thaw:
            values["trained_parameters"] = self._freezing.num_trained(epoch)
        return values, is_stop_asked

    def _exchange_counts(self, batch: StepBatch) -> tuple[Tensor, bool]:
        """Sum over ranks: valid slots of each round, unreadable samples, wishes to stop."""
        counts = torch.zeros(len(batch.micro_batches) + 3, dtype=torch.float64)
        unreadable = [bad for bad in batch.bad_samples if bad.reason != WITHDRAWN]
        counts[0], counts[1] = float(self._stop_asked), float(len(unreadable))
        counts[2] = len(batch.bad_samples) - len(unreadable)
        for number, micro in enumerate(batch.micro_batches):
            counts[3 + number] = micro.valid.sum()
        self._write_bad_samples(batch, unreadable)
        counts = dist.all_reduce_sum(counts.to(self.device))
        stops, num_bad = int(counts[0]), int(counts[1])
        self._num_bad_samples += num_bad
        if num_bad:
            read = self.samples + self.config.training.global_batch
            if self._num_bad_samples > allowed_bad_samples(read, self.config.data.max_bad_share):
                raise UserError(
                    self.plan.dataset.root,
                    f"{self._num_bad_samples} of {read} samples could not be read",
                    f"at most {self.config.data.max_bad_share:.2%} (data.max_bad_share)",
                    f"see {self.config.output / BAD_SAMPLES_FILE}; preprocess verify {self.plan.dataset.root}",
                )
        self._num_withdrawn = int(counts[2])
        return counts[3:].float(), stops > 0

    def _write_bad_samples(self, batch: StepBatch, unreadable: list[BadSample]) -> None:
        if unreadable:
            with open(self.config.output / BAD_SAMPLES_FILE, "a") as file:
                for sample in unreadable:
                    file.write(json.dumps({"position": batch.step_position, **vars(sample)}, default=str) + "\n")

    def _trim_bad_samples(self) -> None:
        """Drop the ledger's lines of steps that will be done again, so that none stands there twice."""
        path = self.config.output / BAD_SAMPLES_FILE
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["position"] < self.samples]
            path.write_text("".join(line + "\n" for line in lines))

    def _follow_freezing(self, samples: int) -> bool:
        """Let the right parameters rest at a position; whether they are others than before."""
        epoch = self.plan.epoch(samples)
        self._freezing.hold_statistics(epoch)
        frozen = self._freezing.at(epoch)
        if frozen == self._frozen:
            return False
        self.backend.freeze(frozen)
        self._frozen = frozen
        self._settle()
        return True

    def _settle(self) -> None:
        """One dummy forward and backward. DDP lays its buckets out anew after the first backward pass, which changes
        the order of sums; without this a resumed run would differ from the run that never stopped."""
        model = self.backend.model
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        crop_px = self.plan.crop_px
        images = torch.zeros(
            self.config.training.local_batch, crop_px, crop_px, 3, dtype=torch.uint8, device=self.device
        )
        (self.backend.forward(images.permute(0, 3, 1, 2)) * 0).sum().backward()
        self.backend.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

    def _tensors(self) -> dict[str, Tensor]:
        tensors = training_tensors(self.backend, self.head, self.head_optimizer, self.mesh)
        return tensors if self._ema is None else tensors | self._ema.tensors()

    def _save(self) -> None:
        info = checkpoint.CheckpointInfo(
            step=self.step,
            samples=self.samples,
            num_bad_samples=self._num_bad_samples,
            world_size=dist.world_size(),
            num_classes=self.plan.split.num_labels,
            label_map_sha256=self.plan.label_map,
            split=self.plan.split.split,
            config=self.config.model_dump(mode="json"),
            dataset=self.plan.dataset.info.model_dump(mode="json"),
            versions=checkpoint.versions(),
            order_parts=list(self.plan.order_parts),
            mined_list=self._stream.reference(self.samples),
        )
        checkpoint.save(self.plan.checkpoints, self._tensors(), info, self.config.checkpoint.keep)
        self._stream.prune()

    def _load(self) -> None:
        assert self.plan.resume is not None
        tensors, path = self._tensors(), self.plan.resume.path
        begins_average = self._ema is not None and not checkpoint.has_ema(path)
        if begins_average:
            tensors = {name: t for name, t in tensors.items() if not name.startswith(checkpoint.EMA_PREFIX)}
        checkpoint.load_into(path, tensors)
        if self._ema is not None and begins_average:
            self._ema.restart(self.backend.model.state_dict())
        info = self.plan.resume.info
        self.step, self.samples, self._num_bad_samples = info.step, info.samples, info.num_bad_samples

    def _is_save_due(self, saved_at: int) -> bool:
        every = max(1, round(self.config.checkpoint.every_epochs * self.plan.order.epoch_samples))
        return self.samples // every > saved_at // every

    def _opening_line(self) -> str:
        ranks = dist.world_size()
        resume = self.plan.resume
        described = (self._origin, self.plan.order.describe(), self._freezing.describe(self.plan.epoch(self.samples)))
        order = "".join(f"\n  {line}" for line in described if line)
        if resume is None:
            return (
                f"training {len(self.plan.split):,} samples of {self.plan.split.num_labels:,} identities, "
                f"{self.plan.total_samples:,} samples in all, on {ranks} rank{'s' if ranks > 1 else ''}{order}"
            )
        before = resume.info.world_size
        moved = f"{before} → {ranks} ranks" if before != ranks else f"{ranks} rank{'s' if ranks > 1 else ''}"
        line = f"resumed at step {self.step:,} ({self.samples:,} samples), {moved}, nothing lost, nothing repeated"
        return line + order + "".join(f"\n  changed {change}" for change in resume.changes)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into a wish that all ranks hear before the next step."""

        def ask(signum: int, frame: Any) -> None:
            self._stop_asked = True

        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Window:
    """Rates since the last report."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._started, self._wait_s, self._samples = time.monotonic(), 0.0, 0

    def add(self, wait_s: float, samples: int) -> None:
        self._wait_s += wait_s
        self._samples += samples

    def close(self) -> dict[str, float]:
        elapsed_s = max(1e-9, time.monotonic() - self._started)
        rates = {"samples_per_s": self._samples / elapsed_s, "data_wait": min(1.0, self._wait_s / elapsed_s)}
        self._reset()
        return rates


def _to_number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value
