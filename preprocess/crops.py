"""From a photo to a crop, in one code path for sharding and for evaluation on unaligned photos.

    maker = CropMaker(CropOptions(detector="mtcnn", size_px=112))
    maker = CropMaker.from_dataset(open_dataset("build/data").info)     # as that data set was made
    crop, reason, face = maker.crop_photo("photo.jpg")

`crop` is [size_px, size_px, 3] uint8 RGB, or None with the reason why. The same photo gives the same crop whatever
came before it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import DatasetInfo, DetectorInfo
from preprocess.align import align, is_mirrored
from preprocess.detect import Detector, Face, FaceChoice, choose_face, load_detector
from preprocess.measure import sharpness
from preprocess.photo import Photo, Reject, read_photo
from preprocess.work_times import ALIGN, DETECT, READ, WorkTimes

NO_DETECTOR = "none"
_MIN_EYES_PX = 2.0  # between the eyes of a list's landmarks
_MAX_BATCH_BYTES = 256 * 2**20
"""Of decoded photos, beyond which a batch is not waited for: photos of 100 megapixels must not pile up."""


class CropOptions(BaseModel):
    """Everything that decides what a crop looks like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: str = "mtcnn"
    """`mtcnn`, `yunet`, `scrfd`, or `none` for photos that are aligned crops already."""
    size_px: int = Field(default=112, ge=16, le=1024)
    face: FaceChoice = "largest"
    """Which face when several are found."""
    min_score: float = Field(default=0.7, ge=0.0, le=1.0)
    """The least detector score."""
    min_face_px: int = Field(default=20, ge=1)
    """The least length of the face box's shorter side, in px of the photo."""
    min_sharpness: float = Field(default=0.0, ge=0.0, exclude_if=lambda least: not least)
    """The least sharpness of the crop, the variance of its Laplacian; 0 takes any."""


def describe_detector(options: CropOptions, weights_sha256: str) -> DetectorInfo:
    """What `dataset.json` records, and `CropMaker.from_dataset` reads."""
    chosen = options.model_dump(include={"face", "min_score", "min_face_px", "min_sharpness"})
    if options.detector == NO_DETECTOR:
        chosen = options.model_dump(include={"min_sharpness"})
    return DetectorInfo(
        name=options.detector,
        weights_sha256=weights_sha256,
        options=chosen,
    )


@dataclass(frozen=True)
class PhotoRequest:
    """A photo to crop, and what a list says of it."""

    photo: str | os.PathLike[str] | Callable[[], bytes]
    """Its path, or a function that gives its bytes (see `read_photo`)."""
    bbox: npt.NDArray[np.float32] | None = None
    """[4] x0, y0, x1, y1: which of the detected faces is meant."""
    landmarks: npt.NDArray[np.float32] | None = None
    """[5, 2]: used as they are, instead of detection, unless they cannot be a face's."""


@dataclass(frozen=True)
class CropResult:
    """A photo's crop, or the reason why there is none, and what was learnt on the way."""

    crop: npt.NDArray[np.uint8] | None
    reject_reason: str
    """Empty when there is a crop."""
    face: Face | None
    """None for rejects and for photos that came aligned."""
    source_sha256: str
    width: int
    """Of the upright photo in px; 0 where unknown."""
    height: int
    pixels: npt.NDArray[np.uint8] | None
    """The decoded photo, [height, width, 3] RGB; None where it did not decode."""
    num_faces: int = 0
    """Detected faces that are sure and large enough to be chosen."""


class CropMaker:
    """Makes crops; holds the loaded detector, so make one per process.

    Args:
        options: see `CropOptions`.
        weights: the detector's weight file, for a detector that needs one.

    Raises:
        UserError: an unknown detector, or bad or missing weights.
    """

    def __init__(self, options: CropOptions, weights: Path | None = None) -> None:
        self.options = options
        self.times = WorkTimes()
        self.detector: Detector | None = None
        if options.detector != NO_DETECTOR:
            self.detector = load_detector(options.detector, weights, options.min_face_px)

    @classmethod
    def from_dataset(cls, info: DatasetInfo, weights: Path | None = None) -> CropMaker:
        """The maker that made a data set's crops.

        Raises:
            UserError: the weights are not those of the data set, or are missing.
        """
        options = CropOptions.model_validate(
            {**info.detector.options, "detector": info.detector.name, "size_px": info.crop.size_px}
        )
        maker = cls(options, weights)
        if maker.weights_sha256 != info.detector.weights_sha256:
            raise UserError(
                weights or options.detector,
                f"weights with sha256 {maker.weights_sha256[:16]}…",
                f"{info.detector.weights_sha256[:16]}…, with which the data set was made",
            )
        return maker

    @property
    def weights_sha256(self) -> str:
        """Of the detector's weights; empty without a detector."""
        return self.detector.weights_sha256 if self.detector else ""

    def crop_photo(self, path: str | os.PathLike[str]) -> tuple[npt.NDArray[np.uint8] | None, str, Face | None]:
        """Crop ([size_px, size_px, 3] uint8 RGB) or None; the reason when None; the face when one was detected."""
        result = self.make(path)
        return result.crop, result.reject_reason, result.face

    def make(
        self,
        photo: str | os.PathLike[str] | Callable[[], bytes],
        bbox: npt.NDArray[np.float32] | None = None,
        landmarks: npt.NDArray[np.float32] | None = None,
    ) -> CropResult:
        """As `crop_photo`, with everything the manifest wants to know; see `PhotoRequest` for the arguments."""
        return next(self.make_all([PhotoRequest(photo, bbox, landmarks)]))

    def make_all(self, requests: Iterable[PhotoRequest]) -> Iterator[CropResult]:
        """Give the result of each photo, in order: that of `make`, whatever the others are.

        As many photos are read ahead as the detector wants at once, fewer where they are large.
        """
        batch_size = self.detector.batch_size if self.detector else 1
        batch: list[_Opened] = []
        num_bytes = 0
        for request in requests:
            batch.append(self._open(request))
            num_bytes += batch[-1].num_bytes
            if len(batch) == batch_size or num_bytes >= _MAX_BATCH_BYTES:
                yield from self._finish(batch)
                batch, num_bytes = [], 0
        yield from self._finish(batch)

    def _open(self, request: PhotoRequest) -> _Opened:
        try:
            with self.times.stage(READ):
                return _Opened(request, read_photo(request.photo))
        except Reject as reject:
            return _Opened(request, reject)

    def _finish(self, batch: Sequence[_Opened]) -> Iterator[CropResult]:
        """Results of photos that were read, with one call of the detector."""
        searched = [
            opened.photo.pixels
            for opened in batch
            if isinstance(opened.photo, Photo) and opened.request.landmarks is None
        ]
        found: Iterator[list[Face]] = iter(())
        if self.detector is not None and searched:
            with self.times.stage(DETECT):
                found = iter(self.detector.detect(searched))
        for opened in batch:
            if isinstance(opened.photo, Reject):
                reject = opened.photo
                yield CropResult(None, reject.reason, None, reject.source_sha256, reject.width, reject.height, None)
            else:
                is_searched = self.detector is not None and opened.request.landmarks is None
                yield self._crop(opened.photo, opened.request, next(found) if is_searched else [])

    def _crop(self, photo: Photo, request: PhotoRequest, faces: Sequence[Face]) -> CropResult:
        """A decoded photo's result; `faces` are the detected ones."""
        options, pixels = self.options, photo.pixels
        height, width = pixels.shape[:2]
        num_faces = 0

        def outcome(crop: npt.NDArray[np.uint8] | None, reason: str, face: Face | None = None) -> CropResult:
            if crop is not None and sharpness(crop) < options.min_sharpness:
                crop, reason = None, "blurred"
            return CropResult(crop, reason, face, photo.source_sha256, width, height, pixels, num_faces)

        if self.detector is None:
            if height != width:
                return outcome(None, "not_square")
            with self.times.stage(ALIGN):
                return outcome(_resize(pixels, options.size_px), "")
        face: Face | None
        if request.landmarks is not None:
            face, reason = _given_face(request.bbox, request.landmarks, (width, height), options.min_face_px)
        else:
            sure = [each for each in faces if each.score >= options.min_score]
            num_faces = sum(each.side_px >= options.min_face_px for each in sure)
            face, reason = choose_face(
                faces, options.face, (width, height), options.min_score, options.min_face_px, request.bbox
            )
        if face is None:
            return outcome(None, reason)
        try:
            with self.times.stage(ALIGN):
                crop = align(pixels, face.landmarks, options.size_px)
            return outcome(crop, "", face)
        except ValueError:
            return outcome(None, "bad_landmarks")


@dataclass(frozen=True)
class _Opened:
    """A photo that was read, or why it could not be."""

    request: PhotoRequest
    photo: Photo | Reject

    @property
    def num_bytes(self) -> int:
        return self.photo.pixels.nbytes if isinstance(self.photo, Photo) else 0


def _resize(pixels: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.uint8]:
    if pixels.shape[0] == size_px:
        return pixels
    method = cv2.INTER_AREA if pixels.shape[0] > size_px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (size_px, size_px), interpolation=method), np.uint8)


def _given_face(
    bbox: npt.NDArray[np.float32] | None,
    landmarks: npt.NDArray[np.float32],
    size: tuple[int, int],
    min_face_px: int,
) -> tuple[Face | None, str]:
    """The face that a list describes, or None and `bad_landmarks`: else another order or scale would give crops of
    anything. `size` is the photo's width and height in px."""
    if not np.isfinite(landmarks).all():
        return None, "bad_landmarks"
    num_inside = int(((landmarks >= 0) & (landmarks <= np.array(size))).all(1).sum())
    eyes_px = float(np.linalg.norm(landmarks[1] - landmarks[0]))
    eyes_to_mouth_px = float(np.linalg.norm(landmarks[3:].mean(0) - landmarks[:2].mean(0)))
    # Both are about 0.4 of a face box's side; of a profile the eyes come close, and of a raised head eyes and mouth.
    is_tiny = eyes_px < _MIN_EYES_PX or max(eyes_px, eyes_to_mouth_px) < min_face_px / 4
    if num_inside < 3 or is_tiny or is_mirrored(landmarks):
        return None, "bad_landmarks"
    if bbox is None:  # the manifest's box then spans the landmarks
        bbox = np.concatenate([landmarks.min(0), landmarks.max(0)]).astype(np.float32)
    return Face(bbox=bbox, landmarks=landmarks, score=1.0), ""
