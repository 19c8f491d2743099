"""`metrics.jsonl`: a line a record, without a seam where a run was resumed."""

from __future__ import annotations

import json

from pipeline.json_lines import keep_lines
from pipeline.monitor.sink import Record, RunStart

METRICS_FILE = "metrics.jsonl"


class ToJsonl:
    """Appends; records of later steps, left by a run that was cut off after its last checkpoint, are dropped."""

    is_remote = False
    opening_line = ""

    def __init__(self, start: RunStart) -> None:
        path = start.output / METRICS_FILE
        keep_lines(path, lambda record: record.get("samples", 0) <= start.samples)
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 closed in close

    def write(self, values: Record) -> None:
        self._file.write(json.dumps(dict(values)) + "\n")

    def close(self, is_failed: bool) -> None:
        self._file.close()
