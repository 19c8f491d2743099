"""Plain order over people with enough photos, and not more than so many photos of each an epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from pipeline.data.bijection import NUM_ROUNDS, permute
from pipeline.data.counter import derive_keys
from pipeline.data.manifest import SplitIndex
from pipeline.data.order import FixedEpochs
from pipeline.data.people import PhotoTable


class SelectedOrder(FixedEpochs):
    """See `step_plan.Order`. Each photo at most once an epoch, in a shuffled order.

    Where a person has more than `max_photos`, their photos take turns: each epoch goes on in a shuffled list of them
    where the one before stopped.

    Args:
        split: the samples.
        seed: of the shuffles.
        min_photos: people with fewer are left out.
        max_photos: photos of a person an epoch, at most.

    Raises:
        UserError: nobody has enough photos.
    """

    def __init__(self, split: SplitIndex, seed: int, min_photos: int, max_photos: int | None) -> None:
        self._table = PhotoTable.create(split)
        counts = self._table.num_photos
        self._labels = np.flatnonzero((counts >= min_photos) & (counts > 0))
        if not len(self._labels):
            raise UserError(
                "data.order.min_photos", str(min_photos), f"at most {counts.max(initial=0)}, what the greatest has"
            )
        self._taken = counts[self._labels] if max_photos is None else np.minimum(counts[self._labels], max_photos)
        self._ends = np.cumsum(self._taken)
        self.num_rows = int(self._ends[-1])
        parts = "selected order", split.digest, seed, min_photos, max_photos or 0
        self._key = "".join(f"{word:016x}" for word in derive_keys(4, *parts))
        self._left_out = int((counts > 0).sum()) - len(self._labels)

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at stream positions start … start + count - 1: [count] int64."""
        if start < 0 or count < 0:
            raise ValueError(f"positions count from 0, got start {start}, count {count}")
        shuffle = derive_keys(1, "photos", self._key)[0]
        result, done = np.empty(count, np.int64), 0
        while done < count:
            epoch, slot = divmod(start + done, self.num_rows)
            size = min(count - done, self.num_rows - slot)
            slots = np.arange(slot, slot + size, dtype=np.uint64)
            places = permute(slots, self.num_rows, derive_keys(NUM_ROUNDS, self._key, epoch)).astype(np.int64)
            person = np.searchsorted(self._ends, places, side="right")
            labels, taken = self._labels[person], self._taken[person]
            turn = places - (self._ends[person] - taken) + epoch * taken
            result[done : done + size] = self._table.photos(labels, turn % self._table.num_photos[labels], shuffle)
            done += size
        return result

    def describe(self) -> str:
        """What an epoch holds, in a line."""
        left = f", {self._left_out:,} people left out" if self._left_out else ""
        return f"{self.num_rows:,} photos of {len(self._labels):,} people an epoch{left}"
