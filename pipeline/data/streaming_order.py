"""An order that reads shards in long runs: blocks of neighbours shuffled, and photos shuffled within a window of them.

Slots of an epoch are filled window by window. A window is some blocks that stand next to each other in the epoch's
shuffled list of blocks, and its photos come in an order shuffled over the whole window. So all ranks of a job read the
same few runs of bytes at a time, from one end to the other, and a node that holds two windows, in memory or in its
cache, reads each byte once an epoch. The order is a pure function like the plain one: as exact, as resumable.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.data.bijection import NUM_ROUNDS, permute
from pipeline.data.counter import derive_keys
from pipeline.data.manifest import SplitIndex
from pipeline.data.order import FixedEpochs


class StreamingOrder(FixedEpochs):
    """See `step_plan.Order`. Each epoch visits every row exactly once.

    Args:
        split: the samples.
        seed: of the shuffles.
        block_photos: rows of a block; a block never crosses a shard.
        window_blocks: blocks of a window.
    """

    def __init__(self, split: SplitIndex, seed: int, block_photos: int, window_blocks: int) -> None:
        self.num_rows = len(split)
        sizes = np.bincount(split.shard, minlength=len(split.shards))
        firsts = np.cumsum(sizes) - sizes
        starts = [np.arange(first, first + size, block_photos) for first, size in zip(firsts, sizes, strict=True)]
        self._starts = np.concatenate(starts)
        self._sizes = np.diff(self._starts, append=self.num_rows)
        self._window_blocks = window_blocks
        self._num_shards = len(sizes)
        parts = "streaming order", split.digest, seed, block_photos, window_blocks
        self._key = "".join(f"{word:016x}" for word in derive_keys(4, *parts))
        self._epoch: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def rows(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Give the rows at stream positions start … start + count - 1: [count] int64."""
        if start < 0 or count < 0:
            raise ValueError(f"positions count from 0, got start {start}, count {count}")
        result, done = np.empty(count, np.int64), 0
        while done < count:
            epoch, slot = divmod(start + done, self.num_rows)
            blocks, borders = self._blocks(epoch)
            window = int(np.searchsorted(borders, slot, side="right")) - 1
            first, stop = int(borders[window]), int(borders[window + 1])
            size = min(count - done, stop - slot)
            slots = np.arange(slot - first, slot - first + size, dtype=np.uint64)
            keys = derive_keys(NUM_ROUNDS, "window", self._key, epoch, window)
            places = permute(slots, stop - first, keys).astype(np.int64)
            own = blocks[window * self._window_blocks : (window + 1) * self._window_blocks]
            ends = np.cumsum(self._sizes[own])
            block = np.searchsorted(ends, places, side="right")
            result[done : done + size] = self._starts[own][block] + places - (ends[block] - self._sizes[own][block])
            done += size
        return result

    def describe(self) -> str:
        """How far photos are shuffled, in a line."""
        window = min(self.num_rows, int(self._sizes.max()) * self._window_blocks)
        return f"streaming {len(self._starts):,} blocks of {self._num_shards:,} shards, windows of {window:,} photos"

    def _blocks(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The epoch's order of blocks, and the slot at which each window starts, with the end of the last."""
        if self._epoch is None or self._epoch[0] != epoch:
            keys = derive_keys(NUM_ROUNDS, "blocks", self._key, epoch)
            numbers = np.arange(len(self._starts), dtype=np.uint64)
            blocks = permute(numbers, len(numbers), keys).astype(np.int64)
            sizes = np.add.reduceat(self._sizes[blocks], np.arange(0, len(blocks), self._window_blocks))
            self._epoch = epoch, blocks, np.concatenate([[0], np.cumsum(sizes)])
        return self._epoch[1], self._epoch[2]
