"""Whether two crops whose perceptual hashes are near are versions of one picture.

A hash of 64 bits knows where a crop is light and dark, and aligned faces of one pose share that. Versions of a picture
share the fine detail too: what is left of a crop after its blurred self is subtracted. It is compared after one crop
was laid on the other, for a detector finds the eyes elsewhere by a pixel or two once a photo was resized or compressed:
by an affine map found as by Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation
Coefficient Maximization", 2008. `benchmarks/near_duplicates.py` measures how well that tells versions from others.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preprocess.pages import crop_bytes

Grey = npt.NDArray[np.float32]

MIN_CORRELATION = 0.75
_SIDE_PX = 64  # to which crops are brought: the other lengths are in these pixels
_BLUR_PX = 2.0
_EDGE_PX = 4  # left out: a shifted crop has nothing to compare there
_MAX_SHIFT_PX = 8.0
_MAX_STRETCH = 0.2
_NUM_STEPS, _SMALLEST_GAIN = 30, 1e-4
_SMOOTHING_PX = 5  # of the crops for the search of the map
_MAX_HELD = 4096  # crops of a data set, 16 KiB each


class Crops:
    """The crops of a data set, made comparable.

    Args:
        data: the data set.
        photos: from `find.read_photos`.
    """

    def __init__(self, data: Path, photos: pa.Table) -> None:
        self._data = data
        self._photos = photos.select(["split", "shard", "jpg_offset", "jpg_size", "jpg_crc32"])
        self.at = lru_cache(_MAX_HELD)(self._read)

    def _read(self, place: int) -> Grey | None:
        """The crop of row `place`: see `comparable`; None where it cannot be read or decoded."""
        (photo,) = self._photos.slice(place, 1).to_pylist()
        content = crop_bytes(self._data, photo)
        crop = None if content is None else cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        return None if crop is None else comparable(np.asarray(crop, np.uint8))


class SamePicture:
    """Tells whether two crops are versions of one picture.

    Args:
        left: crops by the first place.
        right: crops by the second place.
    """

    def __init__(self, left: Crops, right: Crops) -> None:
        self._left, self._right = left, right
        self.num_unreadable = 0
        """Pairs that were asked for and could not be compared."""

    def __call__(self, one: int, other: int) -> bool:
        left, right = self._left.at(one), self._right.at(other)
        if left is None or right is None:
            self.num_unreadable += 1
            return False
        return detail_correlation(left, right) >= MIN_CORRELATION


def comparable(grey: npt.NDArray[np.uint8]) -> Grey:
    """A grey crop [S, S] uint8 of any size as [64, 64] float32."""
    return np.asarray(cv2.resize(grey, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA), np.float32)


def detail_correlation(one: Grey, other: Grey) -> float:
    """Correlation of the fine detail of two crops from `comparable`, one laid on the other; 0 where there is none."""
    moved = cv2.warpAffine(
        other,
        _find_map(one, other),
        (_SIDE_PX, _SIDE_PX),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    left, right = _detail(one), _detail(np.asarray(moved, np.float32))
    size = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float((left * right).sum()) / size if size else 0.0


def _detail(grey: Grey) -> Grey:
    fine = (grey - cv2.GaussianBlur(grey, (0, 0), _BLUR_PX))[_EDGE_PX:-_EDGE_PX, _EDGE_PX:-_EDGE_PX]
    return np.asarray(fine - fine.mean(), np.float32)


def _find_map(one: Grey, other: Grey) -> Grey:
    """[2, 3] from places in `one` to places in `other`; the identity where the search finds none, or a wild one."""
    identity = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _NUM_STEPS, _SMALLEST_GAIN)
    try:
        _, found = cv2.findTransformECC(one, other, identity.copy(), cv2.MOTION_AFFINE, criteria, None, _SMOOTHING_PX)
    except cv2.error:  # it does not converge: the crops have little in common
        return identity
    change = np.abs(found - identity)
    is_wild = not np.isfinite(found).all() or change[:, 2].max() > _MAX_SHIFT_PX or change[:, :2].max() > _MAX_STRETCH
    return identity if is_wild else np.asarray(found, np.float32)
