"""The run's ledger of samples that could not be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.reader import BadSample
from pipeline.json_lines import keep_lines

BAD_SAMPLES_FILE = "bad_samples.jsonl"


def write_bad_samples(output: Path, position: int, samples: Sequence[BadSample]) -> None:
    """Add a line each, with the stream position of their global batch. Any rank, for its own."""
    if samples:
        with open(output / BAD_SAMPLES_FILE, "a") as file:
            for sample in samples:
                file.write(json.dumps({"position": position, **vars(sample)}, default=str) + "\n")


def trim_bad_samples(output: Path, samples: int) -> None:
    """Drop the lines of steps that will be done again, so that none stands there twice. One rank for all."""
    keep_lines(output / BAD_SAMPLES_FILE, lambda line: line["position"] < samples)
