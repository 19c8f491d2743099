"""Photos made worse on purpose, the same way each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.data.counter import derive_keys
from pipeline.data.photo_steps import apply_step
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import Crop, PhotoSource, Rejected
from pipeline.evaluate.result_sections import DegradationKind

STRENGTHS: Mapping[DegradationKind, tuple[float, ...]] = {
    "blur": (1, 2, 3, 4, 6),
    "low_resolution": (56, 28, 20, 14, 7),
    "jpeg": (50, 30, 20, 10, 5),
    "occlusion": (0.05, 0.1, 0.2, 0.3, 0.4),
    "brightness": (0.25, 0.5, 0.75, 1.5, 2, 3),
}
UNITS: Mapping[DegradationKind, str] = {
    "blur": "standard deviation of the blur, px of a 112 px crop",
    "low_resolution": "side that the crop is reduced to, px",
    "jpeg": "JPEG quality",
    "occlusion": "share of the crop that is covered",
    "brightness": "factor of brightness",
}

_REFERENCE_PX = 112
_COVER = 128


@dataclass(frozen=True)
class Degradation:
    """A kind and how much of it, in its unit of `UNITS`."""

    kind: DegradationKind
    strength: float


def degradations(crop_px: int) -> list[Degradation]:
    """All of `STRENGTHS`, but for resolutions that crops of this size do not exceed."""
    return [
        Degradation(kind, strength)
        for kind, strengths in STRENGTHS.items()
        for strength in strengths
        if kind != "low_resolution" or strength < crop_px
    ]


def neutral_strength(kind: DegradationKind, crop_px: int) -> float | None:
    """The strength that changes nothing; None for JPEG quality, where even the highest does."""
    neutral = {"blur": 0.0, "low_resolution": float(crop_px), "occlusion": 0.0, "brightness": 1.0}
    return neutral.get(kind)


def degrade(crop: Crop, degradation: Degradation, photo: Photo, seed: int = 0) -> Crop:
    """A degraded copy.

    Args:
        crop: [S, S, 3] uint8 RGB, aligned; left as it is.
        degradation: blur and occlusion scale with S, so that as much of a face is lost whatever the crop's size; a
            reduced side is as it is, for a face of 14 px holds what it holds.
        photo: whose crop it is; with `seed` it says where the occlusion lies, the same place for all strengths.
        seed: see `photo`.

    Returns:
        [S, S, 3] uint8.
    """
    side, strength = len(crop), degradation.strength
    match degradation.kind:
        case "blur":
            return apply_step("blur", crop, {"sigma_px": strength * side / _REFERENCE_PX})
        case "low_resolution":
            return apply_step("low_resolution", crop, {"side_px": strength})
        case "jpeg":
            return apply_step("jpeg", crop, {"quality": strength})
        case "occlusion":
            return apply_step("erase", crop.copy(), _square(side, strength, photo, seed))
        case "brightness":
            return apply_step("colour_jitter", crop, {"brightness": strength, "contrast": 1.0, "saturation": 1.0})


class DegradedPhotos:
    """The photos of another source, degraded; see `pipeline.evaluate.photos.PhotoSource`."""

    def __init__(self, source: PhotoSource, degradation: Degradation) -> None:
        self._source, self._degradation = source, degradation

    def load(self, photo: Photo) -> Crop | Rejected:
        crop = self._source.load(photo)
        return crop if isinstance(crop, Rejected) else degrade(crop, self._degradation, photo)


def _square(side: int, share: float, photo: Photo, seed: int) -> dict[str, float]:
    """Where a square with this share of the area lies, in whole px: anywhere inside, each place as likely."""
    length = round(side * share**0.5)
    places = derive_keys(2, "occlusion", seed, str(photo)).astype(np.float64) / 2.0**64
    left, top = np.floor(places * (side - length + 1)).clip(max=side - length)
    return {"left": left, "top": top, "width": length, "height": length, "fill": _COVER}
