"""The order of samples as a pure function of (data set digest, seed, epoch): nothing is stored, nothing is drawn.

Epochs are concatenated into one endless stream of positions. Position p is slot p % n of epoch p // n, and each epoch
maps its slots to the n rows by a keyed bijection. So the whole state of training's data path is one integer, and any
rank computes its part of any global batch for itself.

    order = PlainOrder.create(split.digest, len(split), seed=0)
    rows = order.rows(start=position, count=1024)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.bijection import NUM_ROUNDS, permute
from pipeline.data.counter import derive_keys


class FixedEpochs:
    """What orders share whose epoch is always the same number of slots, and that repeat no photo to fill a group."""

    num_rows: int
    """Photos of an epoch."""

    @property
    def epoch_samples(self) -> int:
        """Slots of an epoch."""
        return self.num_rows

    def top_ups(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """None: [count] False."""
        return np.zeros(count, bool)

    def epoch(self, position: int) -> float:
        """Epochs that are over at a stream position."""
        return position / self.num_rows

    def position_at(self, epoch: float) -> float:
        """Stream position at which so many epochs are over."""
        return epoch * self.num_rows

    def describe(self) -> str:
        """Nothing to say."""
        return ""


@dataclass(frozen=True)
class PlainOrder(FixedEpochs):
    """Each epoch visits every row exactly once, in its own shuffled order."""

    num_rows: int
    key: str
    """Names the order: hex, from the data set's digest and the seed."""

    @staticmethod
    def create(digest: str, num_rows: int, seed: int) -> PlainOrder:
        """Make the order of a split: `digest` names the data set's content, `seed` the shuffle."""
        if num_rows < 1:
            raise ValueError(f"an order needs at least one row, got {num_rows}")
        words = derive_keys(4, "plain order", digest, seed)
        return PlainOrder(num_rows, "".join(f"{word:016x}" for word in words))

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at stream positions start … start + count - 1.

        Returns:
            [count] int64, each in [0, num_rows).
        """
        if start < 0 or count < 0:
            raise ValueError(f"positions count from 0, got start {start}, count {count}")
        result = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, slot = divmod(start + done, self.num_rows)
            size = min(count - done, self.num_rows - slot)
            slots = np.arange(slot, slot + size, dtype=np.uint64)
            result[done : done + size] = permute(slots, self.num_rows, derive_keys(NUM_ROUNDS, self.key, epoch))
            done += size
        return result
