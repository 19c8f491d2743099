"""What a run writes about itself: `metrics.jsonl`, TensorBoard events and a progress line, all on rank 0."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
PLAIN_LINE_EVERY_S = 10.0


class Monitor:
    """Rank 0's record of a run; on other ranks every method does nothing.

    Args:
        output: the run's directory.
        total_samples: length of the run, for the bar and the ETA.
        samples: samples consumed at the start; records of later steps, left by a run that was cut off after its last
            checkpoint, are dropped, so that a resumed run's curve has no seam.
        is_writer: whether this rank writes.
        tensorboard: also write TensorBoard events.
    """

    def __init__(self, output: Path, total_samples: int, samples: int, step: int, is_writer: bool, tensorboard: bool):
        self._is_writer = is_writer
        self._total_samples = total_samples
        self._writer: Any = None
        self._progress: Progress | None = None
        if not is_writer:
            return
        path = output / METRICS_FILE
        _drop_later_records(path, samples)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 closed in __exit__
        if tensorboard:
            # imported late: it costs a second, and only rank 0 needs it
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1 if step else None)
        self._console = Console(file=sys.stderr)
        self._plain_line_at = time.monotonic()
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task("train", total=total_samples, completed=samples, status="")
        self._first_samples, self._started = samples, time.monotonic()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_writer:
            return
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()
        self._file.close()

    def record(self, values: Mapping[str, float | int]) -> None:
        """Append one record; it holds at least `step` and `samples`."""
        if not self._is_writer:
            return
        self._file.write(json.dumps(dict(values)) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if name not in ("step", "samples"):
                    self._writer.add_scalar(name, value, int(values["step"]))

    def show(self, values: Mapping[str, float | int]) -> None:
        """Move the progress line; without a terminal, a plain line every ten seconds and at the end."""
        if not self._is_writer:
            return
        samples = int(values["samples"])
        status = (
            f"step {values['step']} loss {values['loss']:.3f} {values['samples_per_s']:.0f} samples/s "
            f"data wait {100 * values['data_wait']:.0f} %"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=samples, status=status)
            return
        now = time.monotonic()
        if now - self._plain_line_at >= PLAIN_LINE_EVERY_S or samples >= self._total_samples:
            self._plain_line_at = now
            rate = (samples - self._first_samples) / max(1e-9, now - self._started)
            eta_s = (self._total_samples - samples) / max(1e-9, rate)
            share = 100 * samples / self._total_samples
            self.say(f"train {share:3.0f} % {status} ETA {eta_s:.0f} s")

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self._is_writer:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _drop_later_records(path: Path, samples: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line that a kill cut short
            continue
        if record.get("samples", 0) <= samples:
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)
