"""Shrinking large photos before detection, and putting what was found back to full size."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from preprocess.detect import Face


def shrink(image: npt.NDArray[np.uint8], max_side_px: int) -> tuple[npt.NDArray[np.uint8], float]:
    """The image with its longest side at most `max_side_px`, and the factor by which it was scaled (≤ 1)."""
    height, width = image.shape[:2]
    scale = min(1.0, max_side_px / max(height, width))
    if scale == 1.0:
        return image, 1.0
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def to_faces(
    boxes: npt.NDArray[np.floating], points: npt.NDArray[np.floating], scores: npt.NDArray[np.floating], scale: float
) -> list[Face]:
    """Faces in px of the full photo, by falling score; where scores tie, the order is that of the boxes.

    Args:
        boxes: [N, 4] in px of the shrunk image.
        points: [N, 5, 2], the same.
        scores: [N].
        scale: what `shrink` returned.
    """
    shift = 0.5 / scale - 0.5  # pixel centres: x_full = (x + 0.5) / scale - 0.5
    order: Sequence[int] = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), *map(float, boxes[i])))
    return [
        Face(
            bbox=(boxes[i] / scale + shift).astype(np.float32),
            landmarks=(points[i] / scale + shift).astype(np.float32),
            score=min(1.0, float(scores[i])),
        )
        for i in order
        if np.isfinite(boxes[i]).all() and np.isfinite(points[i]).all()
    ]
