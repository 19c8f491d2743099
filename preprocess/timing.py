"""Where the time of sharding goes: seconds a stage, a line of JSON for each slice, in OUT/.work/times.

Each process appends to a file of its own, so nobody waits and no lock is needed. The lines are for people
(`preprocess status`); nothing is made from them, and they go with the work folder.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from preprocess.storage import work_folder

STAGES = ("read", "decode", "detect", "align", "encode", "write")
_TAIL_BYTES = 2**16


class StageClock:
    """Adds up seconds by stage. Where stages nest, the inner one's time is not counted to the outer."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._inner_s: list[float] = []

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the time of the block to one of `STAGES`."""
        start_s = time.perf_counter()
        self._inner_s.append(0.0)
        try:
            yield
        finally:
            whole_s = time.perf_counter() - start_s
            self._seconds[stage] += whole_s - self._inner_s.pop()
            if self._inner_s:
                self._inner_s[-1] += whole_s

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken = self._seconds
        self._seconds = dict.fromkeys(STAGES, 0.0)
        return taken


@dataclass(frozen=True)
class SliceTimes:
    """One slice, as its worker recorded it."""

    end_s: float
    """Unix time by that worker's clock."""
    wall_s: float
    num_photos: int
    stages_s: dict[str, float]


def times_folder(out: Path) -> Path:
    """Where the files of the workers stand."""
    return work_folder(out) / "times"


def record_slice(out: Path, num_photos: int, wall_s: float, stages_s: dict[str, float]) -> None:
    """Append a slice's times; a report that cannot be written stops no work."""
    line = {"end_s": time.time(), "wall_s": wall_s, "num_photos": num_photos, "stages_s": stages_s}
    path = times_folder(out) / f"{socket.gethostname()}-{os.getpid()}.jsonl"
    try:
        path.parent.mkdir(exist_ok=True)  # without parents: a work folder that was removed stays so
        with open(path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
    except OSError:
        return


def read_recent(out: Path) -> list[SliceTimes]:
    """The last slices of each worker, by their end; lines that are half written are left out."""
    found = []
    try:
        paths = list(times_folder(out).glob("*.jsonl"))
    except OSError:
        return []
    for path in paths:
        try:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                lines = file.read().split(b"\n")
        except OSError:  # the data set was finished meanwhile
            continue
        for line in lines:
            try:
                found.append(SliceTimes(**json.loads(line)))
            except (ValueError, TypeError):
                continue
    return sorted(found, key=lambda each: each.end_s)
