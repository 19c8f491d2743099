"""The photos of each person, as a table that is read where it is mapped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.data.bijection import permute_each
from pipeline.data.counter import mix64
from pipeline.data.manifest import SplitIndex


@dataclass(frozen=True)
class PhotoTable:
    """Rows of a split, person by person."""

    rows: npt.NDArray[np.int32]
    """[N] rows of the split, sorted by label."""
    offsets: npt.NDArray[np.int64]
    """[L + 1]: the photos of a label are rows[offsets[label]:offsets[label + 1]]."""

    @staticmethod
    def create(split: SplitIndex) -> PhotoTable:
        """All photos of a split; `rows` stays mapped."""
        counts = np.bincount(split.label, minlength=split.num_labels)
        return PhotoTable(split.by_label, np.concatenate([[0], np.cumsum(counts)]))

    @cached_property
    def num_photos(self) -> npt.NDArray[np.int64]:
        """[L] photos of each label."""
        return np.diff(self.offsets)

    def without(self, is_seen: npt.NDArray[np.bool_]) -> PhotoTable:
        """The table of the photos whose row is not marked in `is_seen`, a mask over the split's rows."""
        is_left = ~is_seen[self.rows]
        before = np.concatenate([[0], np.cumsum(is_left)])
        return PhotoTable(self.rows[is_left], before[self.offsets])

    def photos(
        self, labels: npt.NDArray[np.int64], places: npt.NDArray[np.int64], key: np.uint64
    ) -> npt.NDArray[np.int64]:
        """Rows of photos, each person's shuffled by a bijection of their own.

        Args:
            labels: [n].
            places: [n], each in [0, number of the label's photos).
            key: of the shuffle: another key, another order of everyone's photos.

        Returns:
            [n] rows of the split.
        """
        keys = mix64(labels.astype(np.uint64) ^ key)
        shuffled = permute_each(places.astype(np.uint64), self.num_photos[labels].astype(np.uint64), keys)
        return self.rows[self.offsets[labels] + shuffled.astype(np.int64)].astype(np.int64)
