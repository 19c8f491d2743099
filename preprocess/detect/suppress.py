"""Non-maximum suppression of face boxes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_NUM_ROWS = 64
"""Boxes compared with all others at once: numpy's calls cost more than its arithmetic on a few boxes."""
_NUM_PAIRS = 1 << 18
"""Bound of the pairs at a time, for memory."""


def suppress(
    boxes: npt.NDArray[np.floating], scores: npt.NDArray[np.floating], threshold: float, over_smaller: bool = False
) -> npt.NDArray[np.int64]:
    """Numbers of the boxes kept, by falling score.

    Args:
        boxes: [N, 4 or more], x0, y0, x1, y1 first, each with an area; both ends belong to a box.
        scores: [N].
        threshold: greatest overlap with a box of higher score.
        over_smaller: whether the overlap is relative to the smaller box; else to the union.
    """
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = boxes[:, :4].T
    area = (x1 - x0 + 1) * (y1 - y0 + 1)
    kept: list[int] = []
    while len(order):
        rows = order[: max(1, min(_NUM_ROWS, _NUM_PAIRS // len(order)))]
        width = np.minimum(x1[rows, None], x1[order]) - np.maximum(x0[rows, None], x0[order]) + 1
        height = np.minimum(y1[rows, None], y1[order]) - np.maximum(y0[rows, None], y0[order]) + 1
        shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)
        one, other = area[rows, None], area[order]
        whole = np.minimum(one, other) if over_smaller else one + other - shared
        is_apart = shared / whole <= threshold
        is_left = np.ones(len(order), bool)
        for row in range(len(rows)):
            if is_left[row]:
                kept.append(int(rows[row]))
                is_left[row + 1 :] &= is_apart[row, row + 1 :]
        order = order[len(rows) :][is_left[len(rows) :]]
    return np.array(kept, np.int64)
