"""Data sets back to what other tools read: a folder of people, or InsightFace's RecordIO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from pipeline.data.tombstones import read_tombstones
from preprocess.export.folders import export_folders
from preprocess.export.rec import export_rec
from preprocess.export.samples import Samples
from preprocess.progress import Advance
from preprocess.sources import refuse_url

FORMATS: dict[str, Callable[[Samples, Path, Advance], None]] = {"folders": export_folders, "rec": export_rec}


def open_samples(data: Path, out: Path, kind: str, split: str) -> Samples:
    """Check what `preprocess export` was given, and open the split.

    Raises:
        UserError: an unknown format or split, no data set, an `out` that exists, or photos that were withdrawn.
    """
    for path in (data, out):
        refuse_url(path)
    if kind not in FORMATS:
        raise UserError("--format", f"unknown format {kind!r}", f"one of {', '.join(FORMATS)}")
    if out.exists():
        raise UserError(out, "exists already", "a new folder")
    dataset = open_dataset(data)
    if len(read_tombstones(data)):
        raise UserError(data, "photos were withdrawn from it", "a data set without them", "preprocess compact first")
    return Samples(dataset.split(split), dataset.info.crop.size_px)
