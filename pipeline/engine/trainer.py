"""The training loop: global batches in, a trained backbone and class centres out."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import checkpoint, dist
from pipeline.checkpoint_writer import CheckpointWriter
from pipeline.config.errors import DataError, UserError
from pipeline.config.status import report_status
from pipeline.data.loader import StepBatch
from pipeline.data.reader import WITHDRAWN, allowed_bad_samples
from pipeline.engine.bad_samples import BAD_SAMPLES_FILE, trim_bad_samples, write_bad_samples
from pipeline.engine.divergence import SpikeDetector, dump_step, find_culprits, non_finite_gradients
from pipeline.engine.learner import Learner
from pipeline.engine.memory import keep_freed_memory
from pipeline.engine.optim import schedule_factor
from pipeline.engine.run import CONFIG_FILE, RunPlan, refresh_resume, write_config
from pipeline.engine.seen_classes import SeenClasses
from pipeline.engine.slow_ranks import SlowRanks
from pipeline.engine.stream import Stream
from pipeline.engine.trace import StepTrace
from pipeline.engine.validation import Validator
from pipeline.engine.watchdog import Watchdog
from pipeline.engine.window import Window
from pipeline.lock import exclusive
from pipeline.monitor.monitor import Monitor
from pipeline.progress import PROGRESS, Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    step: int
    samples: int
    is_finished: bool
    """False when a signal ended it early; its checkpoint is saved either way."""
    is_signalled: bool
    """Whether this rank was signalled; where it was not and the run ended early, another rank was."""


Listener = Callable[[Mapping[str, float | int], bool], None]
"""Called on all ranks when a step that was validated has its checkpoint on disk: with its record, and whether it is the
run's last."""


def train(plan: RunPlan, listener: Listener | None = None) -> TrainResult:
    """Train as planned, from scratch or from the newest checkpoint. Collective on all ranks."""
    if plan.config.device == "cpu":
        keep_freed_memory()
    device = dist.initialise(plan.config.device)
    try:
        PROGRESS.begin(device, step=0)
        with exclusive(plan.config.output), Watchdog(plan.config.output, plan.config.watchdog):
            # the run that held the lock until now may have saved a later checkpoint than the one planned for
            return Trainer(refresh_resume(plan), device, listener).run()
    finally:
        dist.shutdown()


class Trainer:
    """One run on one rank. All methods are collective."""

    def __init__(self, plan: RunPlan, device: torch.device, listener: Listener | None = None) -> None:
        config = plan.config
        self.plan, self.config, self.device = plan, config, device
        self.step = 0
        self.samples = 0
        self._num_bad_samples = 0
        self._num_withdrawn = 0  # in this step
        self._stop_asked = False
        self._num_skipped = 0  # in a row
        self._num_roll_backs = 0
        self._dump: Path | None = None
        self._writer: CheckpointWriter | None = None
        self._listener = listener
        self._say: Callable[[str], None] = logger.warning
        self._spikes = SpikeDetector(config.divergence, [] if plan.resume is None else plan.resume.info.losses)
        self.learner = Learner(plan, device)
        self._stream = Stream(plan, self.learner.backend, device)
        if plan.resume is not None:
            info = plan.resume.info
            self.step, self.samples, self._num_bad_samples = info.step, info.samples, info.num_bad_samples
        self._validator: Validator | None = None
        if config.validation is not None:
            found = None if plan.resume is None else plan.resume.info.validation
            self._validator = Validator(config.validation, plan.validation, plan.crop_px, found)

    def run(self) -> TrainResult:
        """Train to the end of the plan or to the first SIGTERM or SIGINT, then save."""
        config, plan = self.config, self.plan
        is_writer = dist.rank() == 0
        if is_writer:
            write_config(config)
            trim_bad_samples(config.output, self.samples)
        monitor = Monitor(config, plan.total_samples, self.samples, self.step, is_writer)
        writer = CheckpointWriter(
            plan.checkpoints,
            config.checkpoint.keep,
            config.checkpoint.max_failures,
            say=monitor.say,
            on_saved=self._stream.prune,
        )
        self._writer, self._say = writer, monitor.say
        saved_at = validated_at = self.samples
        batches = self._stream.batches(self.samples, say=monitor.say, is_stop_asked=lambda: self._stop_asked)
        with closing(batches), monitor, self._signals(), writer:
            monitor.say(self._opening_line())
            window, stall_s = Window(self.device), 0.0
            slow_ranks = SlowRanks(
                config.watchdog.slow_rank_factor,
                config.watchdog.slow_rank_after_s,
                dist.all_gather_objects(socket.gethostname()),
            )
            seen = SeenClasses(plan.split.num_labels, plan.epoch(self.samples), self.device)
            trace = StepTrace(config.profile, config.output, self.device, monitor.say)
            trace.begin(self.step)
            PROGRESS.enter(Stage.DATA)
            for batch in () if self._is_patience_over else batches:
                PROGRESS.enter(Stage.OTHER)
                values, stop = self._train_step(batch)
                window.add(batch.wait_s, config.training.global_batch)
                seen.add(batch, plan.epoch(self.samples))
                is_last = self.samples >= plan.total_samples or stop
                figures, is_best = self._validate(validated_at, stop)
                if figures:
                    validated_at = self.samples
                    window.leave_out(figures["val/seconds"])
                    is_last = is_last or self._is_patience_over
                if self.step % config.monitor.every_steps == 0 or is_last or self.step == 1 or figures:
                    cost = window.close()
                    for line in slow_ranks.look(cost):
                        monitor.say(line)
                    record = {name: _to_number(value) for name, value in values.items()} | cost.metrics
                    record |= {"step": self.step, "samples": self.samples}
                    record |= {"epoch": plan.epoch(self.samples), **self._stream.metrics, **seen.metrics}
                    record["save_wait_s"], stall_s = stall_s, 0.0
                    record |= figures
                    monitor.record(record)
                    monitor.show(record)
                listener = self._listener if figures else None
                is_due = self._is_due(config.checkpoint.every_epochs, saved_at)
                if is_due or is_last or is_best or listener is not None:
                    stall_s += self._save(writer, saved_at, is_best)
                    saved_at = self.samples
                if listener is not None:
                    with PROGRESS.during(Stage.CHECKPOINT):
                        writer.finish() if is_last else writer.wait()
                        listener(record, is_last)
                PROGRESS.end_step(self.step)
                trace.after_step(self.step)
                if is_last:
                    break
                PROGRESS.enter(Stage.DATA)
            trace.end(self.step)
            if self._validator is not None and self._validator.is_patience_over:
                monitor.say(f"ended: no better validation among the last {self._validator.state.num_since_best}")
            if saved_at != self.samples:  # asked to stop in the middle of a mining round
                self._save(writer, saved_at, is_best=False)
            with PROGRESS.during(Stage.CHECKPOINT):
                writer.finish()
        is_finished = self.samples >= plan.total_samples or self._is_patience_over
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # each node has a supervisor of its own
            report_status("finished" if is_finished else "preempted", step=self.step, samples=self.samples)
        return TrainResult(self.step, self.samples, is_finished, self._stop_asked)

    def _train_step(self, batch: StepBatch) -> tuple[dict[str, Tensor | float], bool]:
        """One optimizer update; gives what to report, and whether any rank was asked to stop."""
        config = self.config
        learner, plan, epoch = self.learner, self.plan, self.plan.epoch(self.samples)
        learner.follow_freezing(self.samples)
        num_valid, is_stop_asked = self._exchange_counts(batch)
        loss, metrics = learner.gradients.backward(batch, num_valid, self.step, epoch)
        backbone_norm = learner.backend.gradient_norm()
        head_norm = learner.head_optimizer.gradient_norm()
        loss_scale = learner.backend.loss_scale
        is_left_out = loss_scale is not None and loss_scale.leaves_out(backbone_norm)
        if is_left_out:
            backbone_norm = torch.zeros_like(backbone_norm)
        # the three are the same on all ranks, so all of them do the same
        if not math.isfinite(float(loss + backbone_norm + head_norm)):
            self._leave_out(batch, float(loss), float(backbone_norm), float(head_norm))
            return {"skipped": self._num_skipped}, is_stop_asked
        self._num_skipped = 0
        if self._spikes.is_spike(float(loss)) and self._roll_back(float(loss)):
            self._advance(batch)
            return {"spike": loss}, is_stop_asked
        learner.statistics.finish_step(batch.num_micro_batches_global)
        values: dict[str, Tensor | float] = {"loss": loss, **metrics}
        self._advance(batch)
        if is_left_out:
            learner.forget_gradients()
        else:
            total_epochs = plan.epoch(plan.total_samples)
            factor = schedule_factor(config.schedule, epoch, total_epochs, plan.order.epoch_samples)
            values |= learner.update(factor, backbone_norm, head_norm, self.step)
        values |= {"backbone_grad_norm": backbone_norm, "head_grad_norm": head_norm}
        if loss_scale is not None:
            values |= {"loss_scale": loss_scale.value, "left_out": float(is_left_out)}
        values["bad_samples"] = self._num_bad_samples
        if len(plan.split.withdrawn):
            values["withdrawn"] = self._num_withdrawn
        if plan.order_parts:
            values["top_ups"] = batch.num_top_ups
        if config.freeze or config.thaw:
            values["trained_parameters"] = learner.freezing.num_trained(epoch)
        return values, is_stop_asked

    def _advance(self, batch: StepBatch) -> None:
        self.step += 1
        self.samples = batch.step_position + self.config.training.global_batch

    def _leave_out(self, batch: StepBatch, loss: float, backbone_norm: float, head_norm: float) -> None:
        """Forget a step whose numbers are not finite, after a dump of the first in a row.

        Raises:
            UserError: training is to stop; on all ranks.
        """
        config = self.config.divergence
        gradients = non_finite_gradients((self.learner.backend.model, self.learner.head))
        self.learner.forget_step()
        self._num_skipped += 1
        culprits = find_culprits(batch, self.learner.gradients.finite, self.plan.split)
        found = f"loss {loss}, gradient norms {backbone_norm} (backbone) and {head_norm} (head)"
        if culprits:
            found += f"; embeddings not finite first on {culprits[0]}"
        if self._num_skipped == 1:
            report: dict[str, object] = {"loss": loss, "non_finite_gradients": gradients}
            report |= {"backbone_grad_norm": backbone_norm, "head_grad_norm": head_norm}
            info = self._describe(is_milestone=False)
            mined = None if info.mined_list is None else Path(info.mined_list.file)
            self._dump = dump_step(self.config.output, self.learner.tensors(), info, batch, report, culprits, mined)
        again = f"launch/train.py --config {self.config.output / CONFIG_FILE} output={self._dump}"
        if config.on_non_finite == "stop" or self._num_skipped >= config.max_skipped:
            raise UserError(
                f"step {self.step + 1}",
                found,
                "finite numbers",
                f"lower optim.backbone.lr or the margin; weights are as before; to do the step again: {again}",
            )
        self._say(f"warning: step {self.step + 1} skipped: {found}; to do it again: {again}")
        self._advance(batch)

    def _roll_back(self, loss: float) -> bool:
        """Say that a loss jumped, and take up the newest checkpoint's weights where that is the policy; whether so."""
        config = self.config.divergence
        said = f"warning: step {self.step + 1}: loss {loss:.4g}, usually {self._spikes.usual():.4g}"
        if config.on_spike == "warn" or self._num_roll_backs >= config.max_roll_backs or self._writer is None:
            self._say(said)
            return False
        self._writer.wait()
        path = checkpoint.latest_checkpoint(self.plan.checkpoints)
        if path is None:
            self._say(f"{said}; there is no checkpoint to go back to")
            return False
        self.learner.forget_step()
        self.learner.load(path, checkpoint.read_info(path))
        self._spikes.forget()
        self._num_roll_backs += 1
        self._say(f"{said}; weights taken back to {path.name}, the batches up to here are not done again")
        return True

    def _exchange_counts(self, batch: StepBatch) -> tuple[Tensor, bool]:
        """Sum over ranks: valid slots of each round, unreadable samples, wishes to stop."""
        counts = torch.zeros(len(batch.micro_batches) + 3, dtype=torch.float64)
        unreadable = [bad for bad in batch.bad_samples if bad.reason != WITHDRAWN]
        counts[0], counts[1] = float(self._stop_asked), float(len(unreadable))
        counts[2] = len(batch.bad_samples) - len(unreadable)
        for number, micro in enumerate(batch.micro_batches):
            counts[3 + number] = micro.valid.sum()
        write_bad_samples(self.config.output, batch.step_position, unreadable)
        counts = dist.all_reduce_sum(counts.to(self.device))
        stops, num_bad = int(counts[0]), int(counts[1])
        self._num_bad_samples += num_bad
        if num_bad:
            read = self.samples + self.config.training.global_batch
            if self._num_bad_samples > allowed_bad_samples(read, self.config.data.max_bad_share):
                raise DataError(
                    self.plan.split.name,
                    f"{self._num_bad_samples} of {read} samples could not be read",
                    f"at most {self.config.data.max_bad_share:.2%} (data.max_bad_share)",
                    f"see {self.config.output / BAD_SAMPLES_FILE}; preprocess verify DATA",
                )
        self._num_withdrawn = int(counts[2])
        return counts[3:].float(), stops > 0

    @property
    def _is_patience_over(self) -> bool:
        return self._validator is not None and self._validator.is_patience_over

    def _validate(self, validated_at: int, is_stopped: bool) -> tuple[dict[str, float], bool]:
        """Figures where a validation is due, else none; and whether the network is the best so far."""
        if self._validator is None or is_stopped:
            return {}, False
        is_over = self.samples >= self.plan.total_samples
        if not is_over and not self._is_due(self._validator.config.every_epochs, validated_at):
            return {}, False
        with PROGRESS.during(Stage.VALIDATION), self.learner.averaged():
            return self._validator.run(self.learner.backend.model, self.device, self.step)

    def _save(self, writer: CheckpointWriter, saved_at: int, is_best: bool) -> float:
        """Begin to save; gives the seconds that training waited."""
        every = self.config.checkpoint.keep_every_epochs
        with PROGRESS.during(Stage.CHECKPOINT):
            info = self._describe(is_milestone=every is not None and self._is_due(every, saved_at))
            return writer.save(self.learner.tensors(), info, is_best)

    def _describe(self, is_milestone: bool) -> checkpoint.CheckpointInfo:
        """What a checkpoint of this moment belongs to."""
        return self.plan.checkpoint_info(
            self.step,
            self.samples,
            self._num_bad_samples,
            order_parts=list(self.plan.order_parts),
            losses=self._spikes.losses,
            is_milestone=is_milestone,
            mined_list=self._stream.reference(self.samples),
            validation=None if self._validator is None else self._validator.state,
        )

    def _is_due(self, every_epochs: float, since: int) -> bool:
        """Whether an interval has ended since so many samples were consumed."""
        every = max(1, round(every_epochs * self.plan.order.epoch_samples))
        return self.samples // every > since // every

    def _opening_line(self) -> str:
        ranks = dist.world_size()
        resume = self.plan.resume
        rests = self.learner.freezing.describe(self.plan.epoch(self.samples))
        described = (self.learner.origin, self.plan.order.describe(), rests)
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
        """Turn SIGTERM and SIGINT into a wish that all ranks hear before the next step.

        Beside the main thread, where somebody else's process trains, they stay as they are.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(signum: int, frame: Any) -> None:
            self._stop_asked = True

        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _to_number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value
