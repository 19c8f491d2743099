"""What a place that metrics go to must offer, and where the ones that keep runs elsewhere remember which run it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

TRACKING_FILE = "tracking.json"

Record = Mapping[str, float | int]
"""Figures by name; `step` and `samples` are among them."""


@dataclass(frozen=True)
class RunStart:
    """What a sink is told about a run when it opens."""

    output: Path
    """The run's directory."""
    step: int
    """Optimizer updates done; later ones that were recorded before are done again."""
    samples: int
    """The same in samples."""
    config: Mapping[str, Any]
    """The resolved configuration, as JSON would have it."""


class Sink(Protocol):
    """A place that metrics go to; opened on rank 0 alone."""

    is_remote: bool
    """Whether it may fail for reasons that lie elsewhere: training then goes on without it."""

    @property
    def opening_line(self) -> str:
        """What a person may want to know, in a line; may be empty."""
        ...

    def write(self, values: Record) -> None:
        """Take a record, without keeping the caller waiting for a network."""
        ...

    def close(self, is_failed: bool) -> None:
        """Let go; `is_failed` says whether the run ends with an error."""
        ...


def stored_run_id(output: Path, tracker: str) -> str | None:
    """The name under which a tracker knows the run that stands in `output`, None before the first start."""
    path = output / TRACKING_FILE
    return json.loads(path.read_text()).get(tracker) if path.is_file() else None


def store_run_id(output: Path, tracker: str, run_id: str) -> None:
    """Remember it, so that a resumed run goes on as the same one there."""
    path = output / TRACKING_FILE
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {tracker: run_id}) + "\n")
