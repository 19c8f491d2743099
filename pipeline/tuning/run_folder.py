"""Where on a node the run of a trial trains."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.config.location import Location


def run_folder(place: Location) -> Path:
    """The place itself where that is a folder; else a temporary one, which is there on one node only."""
    if isinstance(place, Path):
        return place
    scheme, _, rest = place.url.partition("://")
    return Path(tempfile.gettempdir()) / "facemill-tune" / scheme / rest
