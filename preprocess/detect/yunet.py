"""YuNet through OpenCV's `FaceDetectorYN`: quick and small. Weights by path (libfacedetection, BSD or Apache licence).

W. Wu, H. Peng, S. Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from preprocess.detect import Face, file_sha256
from preprocess.detect.resize import shrink, to_faces

_SCORE_THRESHOLD = 0.6
_NMS_THRESHOLD = 0.3
_TOP_K = 5000


class YuNet:
    """See `preprocess.detect.Detector`. It was trained for faces of 10 to 300 px, hence the side limit."""

    max_side_px = 640
    batch_size = 1

    def __init__(self, weights: Path) -> None:
        if not weights.is_file():
            raise UserError(weights, "no such file", "the weights of YuNet (.onnx)")
        self.weights_sha256 = file_sha256(weights)
        # OpenCV 5 warns on standard error that its new engine ignores the target, which is the CPU all the same.
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        try:
            self._model = cv2.FaceDetectorYN.create(
                str(weights), "", (320, 320), _SCORE_THRESHOLD, _NMS_THRESHOLD, _TOP_K
            )
            self._model.detect(np.zeros((320, 320, 3), np.uint8))
        except cv2.error:
            raise UserError(weights, "OpenCV cannot run it as a YuNet", "a YuNet .onnx with any input size") from None
        finally:
            cv2.utils.logging.setLogLevel(level)

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: npt.NDArray[np.uint8]) -> list[Face]:
        small, scale = shrink(image, self.max_side_px)
        self._model.setInputSize((small.shape[1], small.shape[0]))
        found = self._model.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
        if found is None:
            return []
        found = np.asarray(found, np.float64)
        boxes = np.hstack([found[:, :2], found[:, :2] + found[:, 2:4]])
        return to_faces(boxes, found[:, 4:14].reshape(-1, 5, 2), found[:, 14], scale)
