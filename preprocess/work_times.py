"""What each process that makes crops has done, and where its time went: for `preprocess status`, and for nothing else.

A process keeps a small file of its own in OUT/.work/times, written anew after each slice. The files vanish with the
work folder; no byte of the data set depends on them.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocess.storage import work_folder

READ, DETECT, ALIGN, ENCODE = "read and decode", "detect", "align", "encode and measure"
STAGES = (READ, DETECT, ALIGN, ENCODE)


class WorkTimes:
    """Seconds by stage of one process, and the photos they went into."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._num_photos = 0
        self._started = time.time()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    def leave(self, out: Path, num_photos: int) -> None:
        """Add the photos of a slice, and write the file anew."""
        self._num_photos += num_photos
        path = work_folder(out) / "times" / f"{socket.gethostname()}-{os.getpid()}.json"
        content = {
            "photos": self._num_photos,
            "started": self._started,
            "updated": time.time(),
            "seconds": self._seconds,
        }
        temporary = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content))
            os.replace(temporary, path)
        except OSError:  # a report that cannot be written is no reason to stop
            return
