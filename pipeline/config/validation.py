"""Configuration of validation during training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.location import DataLocation
from pipeline.config.section import Section


class ValidationSet(Section):
    """Pairs of photos of people who are not trained on, scored as `launch/evaluate.py` scores them."""

    path: DataLocation
    """A data set with crops of the training data's geometry."""
    pairs: Path | None = None
    """List in the format of LFW's pairs.txt; None draws pairs from `split`."""
    split: str = "val"
    """Where pairs are drawn from; a list may name photos of all splits."""


class ValidationConfig(Section):
    """Verification while training: the best checkpoint is kept, and training may end when nothing gets better.

    Where there is a moving average of the weights (`ema`), that is what is scored, as `launch/evaluate.py` does."""

    sets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ValidationSet] = Field(min_length=1)
    """What is scored, under names of your choice (a-z, 0-9, _)."""
    every_epochs: float = Field(1.0, gt=0)
    """Distance between two validations; one more comes at the end. Each that finds the best so far is saved."""
    best_by: str | None = None
    """Name of the set whose accuracy says which checkpoint is the best; None for the mean over all sets."""
    patience: int | None = Field(None, ge=1)
    """Training ends after so many validations in a row without a better one; None for never."""

    @model_validator(mode="after")
    def _best_by_is_a_set(self) -> ValidationConfig:
        if self.best_by is not None and self.best_by not in self.sets:
            raise ValueError(f"best_by {self.best_by!r} is none of the sets: {', '.join(self.sets)}")
        return self
