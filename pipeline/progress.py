"""What this process is doing: the step, the stage of it, since when; and how long each stage took.

Like a logger there is one for the process, `PROGRESS`: whoever works says where it is, the watchdog and the metrics
look. Time is given to exactly one stage at a time, so the stages of a step add up to its wall-clock time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch


class Stage(StrEnum):
    """What a rank may be doing. The last ones take as long as they take, outside of any step's time limit."""

    DATA = "data"
    """Waiting for the loader."""
    FORWARD = "forward"
    """The backbone's forward pass."""
    HEAD = "head"
    """The loss, forward and backward, without its collectives."""
    BACKWARD = "backward"
    """The backbone's backward pass."""
    COMMUNICATION = "communication"
    """In collectives that nothing hides: the transfer itself, and waiting for ranks that come later."""
    OPTIMIZER = "optimizer"
    """Clipping and both updates."""
    OTHER = "other"
    """All else: bookkeeping, metrics."""
    CHECKPOINT = "checkpoint"
    MINING = "mining"
    VALIDATION = "validation"


LONG_STAGES = frozenset({Stage.CHECKPOINT, Stage.MINING, Stage.VALIDATION})
_DRAIN_AT = 512


@dataclass(frozen=True)
class Moment:
    """Where a process is."""

    step: int
    """Optimizer updates done."""
    stage: Stage
    elapsed_s: float
    """Since the last step ended, or since a long stage began or ended after it."""
    is_long: bool
    """Whether this may take longer than a step: a long stage, or all that comes before the end of the first step."""


class Progress:
    """A clock with stages. One thread enters stages at a time; any thread may look.

    On a GPU the clock is that of the current stream: events are recorded, never waited for.
    """

    def __init__(self) -> None:
        self.begin(torch.device("cpu"), step=0)

    def begin(self, device: torch.device, step: int) -> None:
        """Start afresh, before the first step of a run, `step` optimizer updates having been done."""
        self._is_cuda = device.type == "cuda"
        self._seconds: dict[Stage, float] = dict.fromkeys(Stage, 0.0)
        self._pending: deque[tuple[Stage, Any]] = deque()
        self._step, self._since = step, time.monotonic()
        self._is_first_step = True
        self._long: Stage | None = None
        self._stage = Stage.OTHER
        self._entered = time.perf_counter()
        self._note(Stage.OTHER)

    def enter(self, stage: Stage) -> Stage:
        """Be in another stage from now on; gives the one before. Inside a long stage, only that one counts."""
        before = self._stage
        if self._long is None and stage is not before:
            self._note(stage)
        return before

    @contextmanager
    def during(self, stage: Stage) -> Iterator[None]:
        """Be in a stage while the block runs; a long one has a time limit of its own."""
        if stage in LONG_STAGES:
            with self._during_long(stage):
                yield
            return
        before = self.enter(stage)
        try:
            yield
        finally:
            self.enter(before)

    def end_step(self, step: int) -> None:
        """Say that a step is over: `step` optimizer updates have been done."""
        self._step, self._since, self._is_first_step = step, time.monotonic(), False

    def moment(self) -> Moment:
        """Where the process is now."""
        stage = self._long or self._stage
        is_long = self._is_first_step or self._long is not None
        return Moment(self._step, stage, time.monotonic() - self._since, is_long)

    def take(self) -> dict[Stage, float]:
        """Seconds by stage since the last call; on a GPU without what it has not done yet."""
        self._note(self._stage)
        self._drain()
        taken, self._seconds = self._seconds, dict.fromkeys(Stage, 0.0)
        return taken

    @contextmanager
    def _during_long(self, stage: Stage) -> Iterator[None]:
        before = self._stage
        self._note(stage)
        self._long, self._since = stage, time.monotonic()
        try:
            yield
        finally:
            self._long, self._since = None, time.monotonic()
            self._note(before)

    def _note(self, stage: Stage) -> None:
        """Give the time until now to the present stage, and begin `stage`."""
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._pending.append((stage, event))
            if len(self._pending) >= _DRAIN_AT:
                self._drain()
        else:
            now = time.perf_counter()
            self._seconds[self._stage] += now - self._entered
            self._entered = now
        self._stage = stage

    def _drain(self) -> None:
        """Read the events that have come to pass."""
        while len(self._pending) > 1 and self._pending[1][1].query():
            stage, began = self._pending.popleft()
            self._seconds[stage] += began.elapsed_time(self._pending[0][1]) / 1000


PROGRESS = Progress()
"""This process's."""
