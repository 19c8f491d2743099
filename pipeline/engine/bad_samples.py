"""The run's ledger of samples that could not be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.reader import BadSample

BAD_SAMPLES_FILE = "bad_samples.jsonl"


def write_bad_samples(output: Path, position: int, samples: Sequence[BadSample]) -> None:
    """Add a line each, with the stream position of their global batch. Any rank, for its own."""
    if samples:
        with open(output / BAD_SAMPLES_FILE, "a") as file:
            for sample in samples:
                file.write(json.dumps({"position": position, **vars(sample)}, default=str) + "\n")


def trim_bad_samples(output: Path, samples: int) -> None:
    """Drop the lines of steps that will be done again, so that none stands there twice. One rank for all."""
    path = output / BAD_SAMPLES_FILE
    if path.is_file():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["position"] < samples]
        path.write_text("".join(line + "\n" for line in lines))
