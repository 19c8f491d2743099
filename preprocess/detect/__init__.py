"""Face detectors: one small protocol, a registry by name, and the choice among several faces.

To add a detector: write a class with `detect` (see `Detector`) in a module of its own, and a line in `DETECTORS`.
A detector must give a photo the same faces whatever other photos stand in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError

FaceChoice = Literal["largest", "central", "score"]
_MIN_OVERLAP = 0.3  # of a detected box with the list's box, intersection over union


def load_detector(name: str, weights: Path | None, min_face_px: int) -> Detector:
    """Make a detector by name.

    Args:
        name: a key of `DETECTORS`.
        weights: the weight file, for the detectors that need one.
        min_face_px: faces smaller than this need not be found (it saves time); the box's shorter side.

    Raises:
        UserError: an unknown name, or weights that are missing, unreadable or not asked for.
    """
    if name not in DETECTORS:
        raise UserError("--detector", f"unknown detector {name!r}", f"one of {', '.join(sorted(DETECTORS))}")
    return DETECTORS[name](weights, min_face_px)


def file_sha256(*paths: Path) -> str:
    """sha256 hex over the content of files, in the order given."""
    hasher = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                hasher.update(block)
    return hasher.hexdigest()


def choose_face(
    faces: Sequence[Face],
    choice: FaceChoice,
    size: tuple[int, int],
    min_score: float,
    min_face_px: float,
    near_box: npt.NDArray[np.float32] | None = None,
) -> tuple[Face | None, str]:
    """The face to crop and an empty string, or None and the reason: no_face, low_score, small_face, not_in_box.

    Args:
        faces: as a detector gave them.
        choice: `largest` box, `central` (box centre nearest to the photo's), or highest `score`.
        size: the photo's width and height in px.
        min_score: the least detector score.
        min_face_px: the least length of the box's shorter side, in px.
        near_box: [4] x0, y0, x1, y1 from the list of photos: the face that overlaps it most wins instead of `choice`.
    """
    if not faces:
        return None, "no_face"
    sure = [face for face in faces if face.score >= min_score]
    if not sure:
        return None, "low_score"
    large = [face for face in sure if face.side_px >= min_face_px]
    if not large:
        return None, "small_face"
    if near_box is not None:
        best = max(large, key=lambda face: _overlap(face.bbox, near_box))
        return (best, "") if _overlap(best.bbox, near_box) >= _MIN_OVERLAP else (None, "not_in_box")
    if choice == "score":
        return max(large, key=lambda face: face.score), ""
    if choice == "largest":
        return max(large, key=lambda face: face.area_px2), ""
    middle = np.array(size) / 2
    return min(large, key=lambda face: float(np.linalg.norm(face.centre - middle))), ""


def _overlap(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0.0)))
    total = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / total if total > 0 else 0.0


def _load_mtcnn(weights: Path | None, min_face_px: int) -> Detector:
    from preprocess.detect.mtcnn import Mtcnn

    if weights is not None:
        raise UserError("--weights", "mtcnn brings its own weights", remedy="leave --weights out")
    return Mtcnn(min_face_px)


def _load_yunet(weights: Path | None, min_face_px: int) -> Detector:
    from preprocess.detect.yunet import YuNet

    return YuNet(weights or _kept_weights("yunet"))


def _load_scrfd(weights: Path | None, min_face_px: int) -> Detector:
    from preprocess.detect.scrfd import Scrfd

    if weights is None:
        raise UserError("--weights", "missing", "the path of an SCRFD .onnx file", "or take --detector mtcnn")
    return Scrfd(weights)


def _kept_weights(name: str) -> Path:
    from preprocess.detect.weights import kept_weights, weights_folder

    found = kept_weights(name)
    if found is None:
        expected = f"a path, or the file in {weights_folder()}"
        raise UserError("--weights", "missing", expected, f"preprocess weights {name}, or take --detector mtcnn")
    return found


@dataclass(frozen=True)
class Face:
    """One detected face, in px of the photo."""

    bbox: npt.NDArray[np.float32]
    """[4] x0, y0, x1, y1; may reach beyond the photo."""
    landmarks: npt.NDArray[np.float32]
    """[5, 2] x, y: eye, eye, nose tip, mouth corner, mouth corner; of a pair, the image's left first."""
    score: float
    """The detector's confidence, 0 to 1."""

    @property
    def side_px(self) -> float:
        """The box's shorter side."""
        return float(min(self.bbox[2] - self.bbox[0], self.bbox[3] - self.bbox[1]))

    @property
    def area_px2(self) -> float:
        return float((self.bbox[2] - self.bbox[0]) * (self.bbox[3] - self.bbox[1]))

    @property
    def centre(self) -> npt.NDArray[np.float32]:
        return (self.bbox[:2] + self.bbox[2:]) * np.float32(0.5)


class Detector(Protocol):
    """What the rest of preprocessing knows of a detector."""

    weights_sha256: str
    """Of the weight files, in the order in which the detector names them."""
    max_side_px: int
    """Photos with a longer side are shrunk to this before detection; faces are given in px of the full photo."""
    batch_size: int
    """How many images it wants at once; 1 where more would not make it quicker."""

    def detect(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[list[Face]]:
        """Find the faces of each image ([H, W, 3] uint8 RGB), sorted by falling score."""
        ...


DETECTORS: dict[str, Callable[[Path | None, int], Detector]] = {
    "mtcnn": _load_mtcnn,
    "scrfd": _load_scrfd,
    "yunet": _load_yunet,
}
