"""`metrics.jsonl`: a line a record, without a seam where a run was resumed."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.atomic_write import write_atomically
from pipeline.monitor.sink import Record, RunStart

METRICS_FILE = "metrics.jsonl"


class ToJsonl:
    """Appends; records of later steps, left by a run that was cut off after its last checkpoint, are dropped."""

    is_remote = False
    opening_line = ""

    def __init__(self, start: RunStart) -> None:
        path = start.output / METRICS_FILE
        _drop_later_records(path, start.samples)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 closed in close

    def write(self, values: Record) -> None:
        self._file.write(json.dumps(dict(values)) + "\n")

    def close(self, is_failed: bool) -> None:
        self._file.close()


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
    write_atomically(path, "".join(line + "\n" for line in kept).encode())
