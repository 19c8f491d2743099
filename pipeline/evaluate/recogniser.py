"""A model as evaluation sees it: what embeds crops, and what is known of where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.dataset_format import DatasetInfo
from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.result import Model


@dataclass(frozen=True)
class Recogniser:
    """A model that is ready to embed."""

    embedder: Embedder
    description: Model
    """What the result says of it."""
    trained: DatasetInfo | None = None
    """The data set it was trained on, where that is known: photos are detected and aligned as its were."""
    trained_on: list[tuple[str, str]] = field(default_factory=list)
    """Split and digest of each data set it was trained on, as far as known."""
    run_directory: Path | None = None
    """The training run, whose curves the report shows."""
    notes: list[str] = field(default_factory=list)
    """What was assumed of it, for the result."""
