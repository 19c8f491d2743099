"""Where a loader's time goes: seconds by stage, summed over its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STORE, CRC, DECODE, AUGMENT, ASSEMBLE, PLAN = "store", "crc", "decode", "augment", "assemble", "plan"
"""Reading bytes; checking them; JPEG to pixels; operations on pixels; stacking and sending to the device; which rows a
batch has and what is drawn for them. DALI decodes and augments in one go: that counts as decoding."""


class StageTimes:
    """Adds up seconds by stage; any number of threads may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys((PLAN, STORE, CRC, DECODE, AUGMENT, ASSEMBLE), 0.0)

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
