"""Non-maximum suppression of face boxes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.maximum(high - low + 1, 0.0).prod(axis=1)
        whole = np.minimum(area[best], area[rest]) if over_smaller else area[best] + area[rest] - shared
        order = rest[shared / whole <= threshold]
    return np.array(kept, np.int64)
