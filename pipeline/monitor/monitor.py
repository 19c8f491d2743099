"""What a run writes about itself: records for all its sinks and a progress line, on rank 0."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.config.schema import Config
from pipeline.monitor.sink import RunStart, Sink
from pipeline.monitor.sinks import open_sinks

PLAIN_LINE_EVERY_S = 10.0


class Monitor:
    """Rank 0's record of a run; on other ranks every method does nothing.

    Args:
        config: of the run.
        total_samples: length of the run, for the bar and the ETA.
        samples: samples consumed at the start; records of later steps, left by a run that was cut off after its last
            checkpoint, are dropped, so that a resumed run's curve has no seam.
        step: optimizer updates done at the start.
        is_writer: whether this rank writes.

    Raises:
        UserError: a sink cannot be opened.
    """

    def __init__(self, config: Config, total_samples: int, samples: int, step: int, is_writer: bool) -> None:
        self._is_writer = is_writer
        self._total_samples = total_samples
        self._progress: Progress | None = None
        self._sinks: list[Sink] = []
        if not is_writer:
            return
        start = RunStart(config.output, step, samples, config.model_dump(mode="json"))
        self._sinks = open_sinks(config.monitor, start)
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
        for sink in self._sinks:
            if sink.opening_line:
                self.say(sink.opening_line)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        for sink in list(self._sinks):
            try:
                sink.close(is_failed=kind is not None)
            except Exception as error:
                self._give_up(sink, error)

    def record(self, values: Mapping[str, float | int]) -> None:
        """Hand a record to all sinks; it holds at least `step` and `samples`."""
        for sink in list(self._sinks):
            try:
                sink.write(values)
            except Exception as error:
                self._give_up(sink, error)

    def show(self, values: Mapping[str, float | int]) -> None:
        """Move the progress line; without a terminal, a plain line every ten seconds and at the end."""
        if not self._is_writer:
            return
        samples = int(values["samples"])
        status = (
            f"step {values['step']} loss {values.get('loss', math.nan):.3f} {values['samples_per_s']:.0f} samples/s "
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

    def _give_up(self, sink: Sink, error: Exception) -> None:
        """Go on without a remote sink: a server that is down must not end a training run."""
        if not sink.is_remote:
            raise error
        self._sinks.remove(sink)
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.say(
            f"no more metrics to {type(sink).__name__.removeprefix('To')} ({first_line}); metrics.jsonl has them all"
        )
