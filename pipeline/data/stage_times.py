"""Where a loader's time goes: seconds by stage, summed over its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

STORE, CRC, DECODE, AUGMENT, ASSEMBLE, PLAN = "store", "crc", "decode", "augment", "assemble", "plan"
"""Reading bytes; checking them; JPEG to pixels; operations on pixels; stacking and sending to the device; which rows a
batch has and what is drawn for them. DALI decodes and augments in one go: that counts as decoding."""


class StageTimes:
    """Adds up seconds by stage; any number of threads may add.

    Args:
        names: of the stages; those of a loader unless told.
    """

    def __init__(self, names: Sequence[str] = (PLAN, STORE, CRC, DECODE, AUGMENT, ASSEMBLE)) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block, which should be the work of many samples."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            with self._lock:
                self._seconds[name] += elapsed

    def seconds(self) -> dict[str, float]:
        """By stage, so far."""
        with self._lock:
            return dict(self._seconds)
