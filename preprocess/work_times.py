"""What each process that makes crops has done, and where its time went: for `preprocess status`, and for nothing else.

A process keeps a small file of its own in OUT/.work/times, written anew after each slice. The files vanish with the
work folder; no byte of the data set depends on them.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from pipeline.data.stage_times import StageTimes
from preprocess.storage import work_folder

READ, DETECT, ALIGN, ENCODE = "read and decode", "detect", "align", "encode and measure"
STAGES = (READ, DETECT, ALIGN, ENCODE)


class WorkTimes(StageTimes):
    """Seconds by stage of one process, and the photos they went into."""

    def __init__(self) -> None:
        super().__init__(STAGES)
        self._num_photos = 0
        self._started = time.time()

    def leave(self, out: Path, num_photos: int) -> None:
        """Add the photos of a slice, and write the file anew."""
        self._num_photos += num_photos
        path = work_folder(out) / "times" / f"{socket.gethostname()}-{os.getpid()}.json"
        content = {
            "photos": self._num_photos,
            "started": self._started,
            "updated": time.time(),
            "seconds": self.seconds(),
        }
        temporary = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content))
            os.replace(temporary, path)
        except OSError:  # a report that cannot be written is no reason to stop
            return
