"""A bar with rate and time left on a terminal; a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_LINE_INTERVAL_S = 10.0


@contextmanager
def show_progress(console: Console, what: str, total: int, done: int = 0, unit: str = "photos") -> Iterator[Advance]:
    """Show the progress of `total` things of which `done` were made in an earlier run; yields a function to advance.

    Args:
        console: where to show it; its being a terminal decides between bar and lines.
        what: the task in a word.
        total: how many there are.
        done: how many need not be made; they do not count towards the rate.
        unit: of what is counted.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(what, total=total, completed=done)
            yield lambda count: progress.advance(task, count)
        return
    lines = _Lines(console, what, total, done, unit)
    yield lines.advance
    lines.write()


class Advance(Protocol):
    """Tells the display that `count` more things are done."""

    def __call__(self, count: int, /) -> None: ...


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} {self._unit}/s")


class _Lines:
    """The same for a log file."""

    def __init__(self, console: Console, what: str, total: int, done: int, unit: str) -> None:
        self._console, self._what, self._total, self._unit = console, what, total, unit
        self._first = self._done = done
        self._start_s = self._last_s = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._last_s >= _LINE_INTERVAL_S:
            self.write()

    def write(self) -> None:
        self._last_s = time.monotonic()
        rate = (self._done - self._first) / max(self._last_s - self._start_s, 1e-3)
        left = timedelta(seconds=round((self._total - self._done) / rate)) if rate > 0 else "unknown"
        self._console.print(
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left} left", highlight=False
        )
