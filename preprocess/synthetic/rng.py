"""Counter-based randomness: every number belongs to (seed, identity, photo), never to a worker or to a call's order."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]  # float32 in practice; NumPy's stubs widen it at every other step

_DOMAIN = 0x66616365  # "face": keeps these streams apart from other users of the same seed
_TILE_PX = 512
_WARM = np.array([0.9, 0.05, -0.95])


class Draws:
    """Scalar draws of one stream, as plain Python floats (a float64 scalar would widen float32 arrays)."""

    def __init__(self, seed: int, identity: int, photo: int | None = None) -> None:
        """Open the stream of an identity, or of one of its photos."""
        counter = np.array([0, 0, identity, 0 if photo is None else photo + 1], np.uint64)
        key = np.array([seed, _DOMAIN], np.uint64)
        self.generator = np.random.Generator(np.random.Philox(key=key, counter=counter))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * float(self.generator.random())

    def normal(self, mean: float, deviation: float, bound: float = 2.2) -> float:
        """Normal, clipped to `bound` deviations."""
        return mean + deviation * min(bound, max(-bound, float(self.generator.standard_normal())))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return float(self.generator.random()) < probability

    def integer(self, stop: int) -> int:
        """Uniform in [0, stop)."""
        return int(self.generator.random() * stop)

    def colour(self, low: float, high: float, saturation: float) -> tuple[float, float, float]:
        """Random RGB: a grey level in [low, high) tinted by `saturation`, rather warm or cool than green or purple."""
        level = self.uniform(low, high)
        warmth = self.uniform(-1.0, 1.0)
        tint = self.generator.uniform(-0.4, 0.4, 3) + warmth * _WARM
        red, green, blue = (max(0.0, level * (1.0 + saturation * float(t))) for t in tint)
        return red, green, blue

    def field(self, size: tuple[int, ...], cells: int, channels: int = 1) -> FloatArray:
        """Smooth noise [height, width(, channels)] of the given size in about [-1, 1], `cells` bumps across."""
        shape = (cells + 1, cells + 1) if channels == 1 else (cells + 1, cells + 1, channels)
        coarse = self.generator.uniform(-1.0, 1.0, shape).astype(np.float32)
        return cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


@lru_cache(maxsize=2)
def grain_tile(size_px: int) -> FloatArray:
    """Sensor grain [side, side, 3] to cut photos of `size_px` from: unit deviation, the same in every process."""
    side = size_px + 256
    generator = np.random.Generator(np.random.Philox(key=_DOMAIN))
    luminance = generator.standard_normal((side, side), np.float32)
    colour = cv2.GaussianBlur(generator.standard_normal((side, side, 3), np.float32), (0, 0), 1.2)
    tile = cv2.GaussianBlur(luminance, (0, 0), 0.6)[..., None] * 1.6 + colour * 1.6
    return np.ascontiguousarray(tile / tile.std(), np.float32)


@lru_cache(maxsize=1)
def strand_tiles() -> FloatArray:
    """Hair noise [3, 512, 512] in [-1, 1], wrapping; rows run along strands, columns across: straight, wavy, curly."""
    generator = np.random.Generator(np.random.Philox(key=_DOMAIN + 1))
    tiles = []
    for along, across in ((60.0, 1.0), (18.0, 1.6), (5.0, 3.5)):
        noise = generator.standard_normal((_TILE_PX, _TILE_PX), np.float32)
        fine = _wrapped_blur(noise, across, along)
        coarse = _wrapped_blur(generator.standard_normal((_TILE_PX, _TILE_PX), np.float32), across * 5.0, along)
        tile = fine / fine.std() * 0.6 + coarse / coarse.std() * 0.7
        tiles.append(np.tanh(tile * 0.8))
    return np.stack(tiles).astype(np.float32)


def _wrapped_blur(image: FloatArray, sigma_x: float, sigma_y: float) -> FloatArray:
    pad = _TILE_PX // 4
    blurred = cv2.GaussianBlur(np.pad(image, pad, mode="wrap"), (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    return blurred[pad:-pad, pad:-pad]
