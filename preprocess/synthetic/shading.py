"""Light on surfaces and the camera's rendering of it. Planar float32 images [3, H, W], linear light."""

from __future__ import annotations

import math

import cv2
import numpy as np

from preprocess.synthetic.identity import Colour
from preprocess.synthetic.rng import Draws, FloatArray, grain_tile
from preprocess.synthetic.scene import Light, Scene

_FLESH_WRAP = (0.16, 0.05, 0.0)  # red light travels furthest under the skin
Normals = tuple[FloatArray, FloatArray, FloatArray]


def linear(colour: Colour) -> FloatArray:
    """sRGB 0..255 as linear light [3, 1, 1]; gamma 2, the inverse of `develop`'s."""
    return ((np.array(colour, np.float32) / 255.0) ** 2)[:, None, None]


def illuminate(n: Normals, light: Light, flesh: bool, shadow: FloatArray | None = None) -> FloatArray:
    """Light [3, H, W] that reaches a surface: linear ambient plus a wrapped key, `shadow` in 0..1 dimming the key."""
    nx, ny, nz = n
    lx, ly, lz = light.key_direction
    facing = nx * lx + ny * ly + nz * lz
    out = np.empty((3, *nx.shape), np.float32)
    for c in range(3):
        constant, along_x, along_y, along_z = (coefficients[c] for coefficients in light.ambient)
        wrap = light.softness + (_FLESH_WRAP[c] if flesh else 0.0)
        key = np.maximum(facing * (1.0 / (1.0 + wrap)) + wrap / (1.0 + wrap), 0.0)
        if shadow is not None:
            key *= shadow
        key *= light.key_colour[c]
        ambient = nx * along_x
        ambient += ny * along_y
        ambient += nz * along_z
        ambient += constant
        key += np.maximum(ambient, 0.02, out=ambient)
        out[c] = key
    return out


def highlight(n: Normals, light: Light, power: int) -> FloatArray:
    """Blinn highlight [H, W] of the key light, `power` a power of two."""
    lx, ly, lz = light.key_direction
    length = math.sqrt(lx * lx + ly * ly + (lz + 1.0) ** 2)
    value = np.maximum((n[0] * lx + n[1] * ly + n[2] * (lz + 1.0)) * (1.0 / length), 0.0)
    for _ in range(power.bit_length() - 1):
        value = value * value
    return value


def over(image: FloatArray, layer: FloatArray, alpha: FloatArray) -> None:
    """Lay `layer` [3, H, W] over `image` in place with coverage `alpha` [H, W]."""
    image += alpha * (layer - image)


def develop(image: FloatArray, scene: Scene, draws: Draws) -> np.ndarray:
    """Turn linear light into the camera's picture, uint8 [H, W, 3] RGB: lens, exposure, tone, grain."""
    picture = cv2.merge(list(image))
    size = picture.shape[0]
    unit = size / 168.0
    sigma = scene.focus_blur_px * unit
    picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    if scene.motion_blur_px:
        picture = cv2.filter2D(picture, -1, _motion_kernel(scene.motion_blur_px * unit, scene.motion_angle))
    gain = np.array([scene.exposure * w for w in scene.white_balance], np.float32)
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32) ** 2
    falloff = 1.0 - (0.5 * scene.vignette) * (axis[:, None] + axis[None, :])
    picture *= falloff[..., None] * gain
    shoulder = picture * 0.22  # bright parts saturate softly
    shoulder += 1.0
    picture /= shoulder
    np.sqrt(picture, out=picture)
    picture *= 255.0 * 1.05
    tile = grain_tile(size)
    row, column = draws.integer(tile.shape[0] - size), draws.integer(tile.shape[1] - size)
    grain = tile[row : row + size, column : column + size]
    picture += grain * (scene.grain * 0.75)
    mean = 118.0
    picture -= mean
    picture *= scene.contrast
    picture += mean + 0.5
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _motion_kernel(length: float, angle: float) -> FloatArray:
    size = int(length) + 2 | 1
    kernel = np.zeros((size, size), np.float32)
    half = 0.5 * length
    centre = size // 2
    for t in np.linspace(-half, half, 4 * size):
        kernel[round(centre + float(t) * math.sin(angle)), round(centre + float(t) * math.cos(angle))] += 1.0
    return cv2.GaussianBlur(kernel / kernel.sum(), (3, 3), 0.5)
