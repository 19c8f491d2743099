"""A model as evaluation sees it: what embeds crops, and what is known of where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import DatasetInfo
from pipeline.data.manifest import Dataset
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

    def require_crops(self, dataset: Dataset, where: object) -> None:
        """See that a data set's crops are of the size that the model takes; any will do where no model runs.

        Args:
            dataset: the data set.
            where: what to name in messages.

        Raises:
            UserError: they are not.
        """
        crop_px, found_px = self.embedder.crop_px, dataset.info.crop.size_px
        if self.embedder.stored is None and found_px != crop_px:
            remedy = f"preprocess shard … --size {crop_px}"
            raise UserError(where, f"crops of {found_px} px", f"{crop_px} px, as the model takes", remedy)
