"""Augmentation of one photo on the CPU, from parameters that were drawn before.

`decode_dali` does the same with DALI's operators; docs/augmentation.md says how near the two come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

_Photo = npt.NDArray[np.uint8]
_Values = Mapping[str, float]

# RGB to YIQ: brightness, and a plane of colours that hues turn in
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_MID_GREY = 128.0


def apply_step(kind: str, photo: _Photo, values: _Values) -> _Photo:
    """Apply one operation.

    Args:
        kind: see `augment.Step`.
        photo: [S, S, 3] uint8 RGB; may be overwritten.
        values: the slot's parameters.

    Returns:
        [S, S, 3] uint8.
    """
    return _OPERATIONS[kind](photo, values)


def affine_matrix(values: _Values) -> npt.NDArray[np.float64]:
    """[2, 3] from places in the result to places in the photo, in px from the corner, pixel centres at ½."""
    return np.array([[values["m00"], values["m01"], values["m02"]], [values["m10"], values["m11"], values["m12"]]])


def crop_matrix(values: _Values, side: int) -> npt.NDArray[np.float64]:
    """As `affine_matrix`, of a crop that is stretched to the full side."""
    horizontal, vertical = values["width"] / side, values["height"] / side
    return np.array([[horizontal, 0.0, values["left"]], [0.0, vertical, values["top"]]])


def blur_window(sigma_px: float) -> int:
    """Length of the kernel in px: three standard deviations to each side."""
    return 2 * int(np.ceil(3 * sigma_px)) + 1


def _warp(photo: _Photo, matrix: npt.NDArray[np.float64], border: int) -> _Photo:
    # OpenCV counts pixel centres from 0
    half = np.full(2, 0.5)
    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ half - half
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return _uint8(cv2.warpAffine(photo, matrix, photo.shape[:2], flags=flags, borderMode=border))


def _twist(photo: _Photo, gain: float, contrast: float, saturation: float, hue_degrees: float) -> _Photo:
    """Contrast about mid-grey, saturation and hue in the YIQ plane, then a gain: one linear map of colours."""
    angle = np.radians(hue_degrees)
    plane = saturation * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    inner = np.eye(3)
    inner[1:, 1:] = plane
    matrix = gain * contrast * np.linalg.inv(_YIQ) @ inner @ _YIQ
    offset = np.full((3, 1), gain * _MID_GREY * (1 - contrast))
    return _uint8(cv2.transform(photo, np.hstack([matrix, offset])))


def _equalize(photo: _Photo, values: _Values) -> _Photo:
    return _uint8(cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(photo)]))


def _blur(photo: _Photo, values: _Values) -> _Photo:
    window = blur_window(values["sigma_px"])
    return _uint8(cv2.GaussianBlur(photo, (window, window), values["sigma_px"], borderType=cv2.BORDER_REFLECT_101))


def _low_resolution(photo: _Photo, values: _Values) -> _Photo:
    # Pillow's bilinear filter widens when it shrinks, which OpenCV's does not
    side, small = len(photo), int(values["side_px"])
    image = Image.fromarray(photo).resize((small, small), Image.Resampling.BILINEAR)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def _jpeg(photo: _Photo, values: _Values) -> _Photo:
    content = cv2.imencode(
        ".jpg", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, int(values["quality"])]
    )[1]
    return _uint8(cv2.imdecode(content, cv2.IMREAD_COLOR_RGB))


def _erase(photo: _Photo, values: _Values) -> _Photo:
    left, top, width, height = (int(values[name]) for name in ("left", "top", "width", "height"))
    photo[top : top + height, left : left + width] = int(values["fill"])
    return photo


def _uint8(photo: object) -> _Photo:
    assert isinstance(photo, np.ndarray)
    return photo


_OPERATIONS: dict[str, Callable[[_Photo, _Values], _Photo]] = {
    "flip": lambda photo, values: _uint8(cv2.flip(photo, 1)),
    "random_resized_crop": lambda photo, values: _warp(photo, crop_matrix(values, len(photo)), cv2.BORDER_REPLICATE),
    "affine": lambda photo, values: _warp(photo, affine_matrix(values), cv2.BORDER_CONSTANT),
    "colour_jitter": lambda photo, values: _twist(
        photo, values["brightness"], values["contrast"], values["saturation"], 0.0
    ),
    "hsv": lambda photo, values: _twist(photo, values["value"], 1.0, values["saturation"], values["hue_degrees"]),
    "grey": lambda photo, values: _twist(photo, 1.0, 1.0, 0.0, 0.0),
    "posterize": lambda photo, values: photo & np.uint8(256 - (1 << (8 - int(values["bits"])))),
    "equalize": _equalize,
    "blur": _blur,
    "low_resolution": _low_resolution,
    "jpeg": _jpeg,
    "erase": _erase,
}
