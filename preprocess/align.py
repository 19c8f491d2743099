"""Five landmarks to an upright crop: the similarity transform to InsightFace's template, at any crop size."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

_TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)


def template(size_px: int) -> npt.NDArray[np.float64]:
    """Where eyes, nose tip and mouth corners lie in a crop of `size_px`: [5, 2] x, y in px, the image's left first."""
    return _TEMPLATE_112 * (size_px / 112.0)


def similarity(source: npt.NDArray[np.floating], target: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The [2, 3] rotation, uniform scale and shift that maps `source` [N, 2] best onto `target` [N, 2].

    Least squares without reflection: S. Umeyama, "Least-squares estimation of transformation parameters between two
    point patterns", 1991, equations 40 to 43.

    Raises:
        ValueError: the source points coincide, or no such transform brings them near the target.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    centred = source - source_mean
    variance = (centred**2).sum(1).mean()
    if variance < 1e-9:
        raise ValueError("the landmarks coincide")
    u, singular, vt = np.linalg.svd((target - target_mean).T @ centred / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    scale = (singular * signs).sum() / variance
    if not scale >= 1e-9:  # also nan
        raise ValueError("the landmarks lie so that no turn and scale fits them")
    linear = (u * signs) @ vt * scale
    return np.hstack([linear, (target_mean - linear @ source_mean)[:, None]])


def is_mirrored(landmarks: npt.NDArray[np.floating]) -> bool:
    """Whether `landmarks` [5, 2] fit the template only as a reflection, or a pair of them is swapped.

    So it is when a list takes left and right from the person where the image's are meant, or begins with the mouth.
    """
    points = np.asarray(landmarks, np.float64)
    target = template(112)
    covariance = (target - target.mean(0)).T @ (points - points.mean(0))
    return bool(np.linalg.det(covariance) <= 0 or (points[1] - points[0]) @ (points[4] - points[3]) <= 0)


def align(pixels: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating], size_px: int) -> npt.NDArray[np.uint8]:
    """Crop [size_px, size_px, 3] uint8 with the `landmarks` [5, 2] on the template, black beyond the photo's edge.

    Faces more than twice the crop's size are first shrunk by area averaging: bilinear sampling alone would alias.

    Raises:
        ValueError: see `similarity`.
    """
    matrix = similarity(landmarks, template(size_px))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    factor = 2 ** int(np.floor(np.log2(1.0 / scale))) if scale <= 0.5 else 1
    if factor > 1:
        height, width = pixels.shape[:2]
        small = (max(1, width // factor), max(1, height // factor))
        pixels = np.asarray(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA), np.uint8)
        ratio = np.array([width / small[0], height / small[1]])
        # Pixel centres: x_small = (x + 0.5) / ratio - 0.5, so x = ratio * x_small + (ratio - 1) / 2.
        matrix = np.hstack([matrix[:, :2] * ratio, matrix[:, :2] @ ((ratio - 1) / 2)[:, None] + matrix[:, 2:]])
    crop = cv2.warpAffine(pixels, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
    return np.asarray(crop, np.uint8)
