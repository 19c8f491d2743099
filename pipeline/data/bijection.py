"""Keyed bijections of [0, n): shuffles that are evaluated where they are asked, and stored nowhere.

`permute` maps places of one range, `permute_each` places of many small ranges at a time, each with a key of its own.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipeline.data.counter import mix64

# A Feistel network of 4 rounds with good round functions passes for a random permutation (Luby, Rackoff 1988); the
# bound is loose where the halves are a few bits, so small ranges get the benefit of more rounds.
NUM_ROUNDS = 10
_SHIFT_32 = np.uint64(32)


def permute(slots: npt.NDArray[np.uint64], num_rows: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Map slots to rows by a keyed bijection of [0, num_rows).

    A slot is a cell of a grid of `height` × `width` ≥ num_rows cells, the smallest near-square one; each round shifts
    one coordinate by a keyed hash of the other, modulo its side, which can be undone. An image that falls on one of
    the grid's few surplus cells is mapped again until it falls inside (cycle walking: it follows the cycle of the
    grid's bijection, whose start is inside, so it ends, and two slots never meet).

    Args:
        slots: [n], each below num_rows.
        num_rows: at least 1, below 2^62.
        keys: [NUM_ROUNDS].

    Returns:
        [n] uint64.
    """
    width = math.isqrt(num_rows - 1) + 1
    height = -(-num_rows // width)
    rows = _shuffle_cells(slots, height, width, keys)
    outside = np.flatnonzero(rows >= num_rows)
    while outside.size:
        rows[outside] = _shuffle_cells(rows[outside], height, width, keys)
        outside = outside[rows[outside] >= num_rows]
    return rows


def permute_each(
    slots: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Map each slot by a bijection of its own range and key; as `permute`, element by element.

    Args:
        slots: [n], each below its size.
        sizes: [n], at least 1, below 2^32.
        keys: [n], one a range: equal keys and sizes give the same bijection.

    Returns:
        [n] uint64.
    """
    widths = np.sqrt((sizes - np.uint64(1)).astype(np.float64)).astype(np.uint64) + np.uint64(1)
    heights = (sizes + widths - np.uint64(1)) // widths
    rows = _shuffle_each(slots, heights, widths, keys)
    outside = np.flatnonzero(rows >= sizes)
    while outside.size:
        rows[outside] = _shuffle_each(rows[outside], heights[outside], widths[outside], keys[outside])
        outside = outside[rows[outside] >= sizes[outside]]
    return rows


def _shuffle_cells(
    cells: npt.NDArray[np.uint64], height: int, width: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    sides = (np.uint64(height), np.uint64(width))
    coordinates = [cells // sides[1], cells % sides[1]]
    for number, key in enumerate(keys):
        target = number % 2
        coordinates[target] = _shift(coordinates[target], coordinates[1 - target] ^ key, sides[target])
    return coordinates[0] * sides[1] + coordinates[1]


def _shuffle_each(
    cells: npt.NDArray[np.uint64],
    heights: npt.NDArray[np.uint64],
    widths: npt.NDArray[np.uint64],
    keys: npt.NDArray[np.uint64],
) -> npt.NDArray[np.uint64]:
    sides = (heights, widths)
    coordinates = list(np.divmod(cells, widths))
    for number in range(NUM_ROUNDS):
        target = number % 2
        keys = mix64(keys)
        coordinates[target] = _shift(coordinates[target], coordinates[1 - target] ^ keys, sides[target])
    return coordinates[0] * widths + coordinates[1]


def _shift(
    coordinate: npt.NDArray[np.uint64], hashed: npt.NDArray[np.uint64], side: np.uint64 | npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    # The hash's upper 32 bits scaled to the side: cheaper than a remainder, and as even for any side below 2^32.
    moved = coordinate + (((mix64(hashed) >> _SHIFT_32) * side) >> _SHIFT_32)
    return np.where(moved >= side, moved - side, moved)
