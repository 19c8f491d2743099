"""The order of samples as a pure function of (data set digest, seed, epoch): nothing is stored, nothing is drawn.

Epochs are concatenated into one endless stream of positions. Position p is slot p % n of epoch p // n, and each epoch
maps its slots to the n rows by a keyed bijection. So the whole state of training's data path is one integer, and any
rank computes its part of any global batch for itself.

    order = PlainOrder.create(split.digest, len(split), seed=0)
    rows = order.rows(start=position, count=1024)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.counter import derive_keys, mix64

# A Feistel network of 4 rounds with good round functions passes for a random permutation (Luby, Rackoff 1988); the
# bound is loose where the halves are a few bits, so small data sets get the benefit of more rounds.
_NUM_ROUNDS = 10
_SHIFT_32 = np.uint64(32)


@dataclass(frozen=True)
class PlainOrder:
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
            result[done : done + size] = _permute(slots, self.num_rows, derive_keys(_NUM_ROUNDS, self.key, epoch))
            done += size
        return result


def _permute(slots: npt.NDArray[np.uint64], num_rows: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Map slots to rows by a keyed bijection of [0, num_rows).

    A slot is a cell of a grid of `height` × `width` ≥ num_rows cells, the smallest near-square one; each round shifts
    one coordinate by a keyed hash of the other, modulo its side, which can be undone. An image that falls on one of
    the grid's few surplus cells is mapped again until it falls inside (cycle walking: it follows the cycle of the
    grid's bijection, whose start is inside, so it ends, and two slots never meet).
    """
    width = math.isqrt(num_rows - 1) + 1
    height = -(-num_rows // width)
    rows = _shuffle_cells(slots, height, width, keys)
    outside = np.flatnonzero(rows >= num_rows)
    while outside.size:
        rows[outside] = _shuffle_cells(rows[outside], height, width, keys)
        outside = outside[rows[outside] >= num_rows]
    return rows


def _shuffle_cells(
    cells: npt.NDArray[np.uint64], height: int, width: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    sides = (np.uint64(height), np.uint64(width))
    coordinates = [cells // sides[1], cells % sides[1]]
    for number, key in enumerate(keys):
        target = number % 2
        side = sides[target]
        # The hash's upper 32 bits scaled to the side: cheaper than a remainder, and as even for any side below 2^32.
        shift = ((mix64(coordinates[1 - target] ^ key) >> _SHIFT_32) * side) >> _SHIFT_32
        moved = coordinates[target] + shift
        coordinates[target] = np.where(moved >= side, moved - side, moved)
    return coordinates[0] * sides[1] + coordinates[1]
